"""The server under load: images per second beside bare calls of the model, latencies, minutes of load, malformed requests,
clients that send whole images and hang up.

python benchmarks/serve.py RUN [--seconds 10] [--minutes 1] [--rate 0] [--malformed 10000] [--leaving 10000]

The server and the load generator run on different cores, where there are two. On a machine with other work, trust the columns of
processor time: they are what an idle core would reach.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from common import print_machine, print_table
from petriscope.ship.server.classification import Classifier
from petriscope.ship.server.opening import open_model

AT_ONCE = 32
BATCHES = (1, 32)
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="a run folder, or whatever else is served")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--minutes", type=float, default=1, help="of load, at the end")
    parser.add_argument(
        "--rate", type=float, default=0, help="requests per second of that load; 0: as many as possible"
    )
    parser.add_argument("--malformed", type=int, default=10_000, help="requests")
    parser.add_argument("--leaving", type=int, default=10_000, help="clients that do not wait for their answer")
    args = parser.parse_args()
    print_machine()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0]})  # before the model is opened, which makes a thread per core
    model = open_model(args.run, "cpu")
    if not isinstance(model, Classifier):
        raise SystemExit("give a run or a package that labels images")
    contents = images(model)
    bare = measure_bare(model, contents, args.seconds / 4)
    os.sched_setaffinity(0, {cores[-1]})
    with server(args.run, cores[0]) as (port, process):
        print_throughput(bare, port, process, contents, args.seconds)
        print_long(port, process, contents, args.minutes, args.rate, args.malformed)
        print_leaving(port, contents, args.leaving)


def images(model: Classifier, count: int = 256) -> list[bytes]:
    """PNG files of noise around a disc, in the size of the model."""
    rng = np.random.default_rng(0)
    height, width, channels = model.shape
    y, x = np.mgrid[:height, :width]
    out = []
    for _ in range(count):
        inside = np.hypot(y - height / 2, x - width / 2) < height * rng.uniform(0.2, 0.4)
        pixels = np.where(inside, 110, 215)[..., None] + rng.normal(0, 8, model.shape)
        array, file = pixels.clip(0, 255).astype(np.uint8), BytesIO()
        Image.fromarray(array[..., 0] if channels == 1 else array).save(file, "PNG")
        out.append(file.getvalue())
    return out


def measure_bare(model: Classifier, contents: list[bytes], seconds: float) -> list[tuple[str, float, float]]:
    """Calls of the model in this process: name, images per second, processor milliseconds per image."""
    pixels = np.stack([model.decode("x", content).pixels for content in contents])
    out = []
    for batch in BATCHES:
        out.append(
            (
                f"bare calls, batches of {batch}",
                *timed(lambda b=batch: model.classifies.predict(pixels[:b], model.tta), batch, seconds),
            )
        )
    out.append(
        ("decoding alone", *timed(lambda: [model.decode("x", content) for content in contents[:32]], 32, seconds))
    )
    return out


def timed(action, images: int, seconds: float) -> tuple[float, float]:
    action()
    count, start, cpu = 0, time.perf_counter(), time.process_time()
    while (took := time.perf_counter() - start) < seconds:
        action()
        count += images
    return count / took, 1000 * (time.process_time() - cpu) / count


@contextmanager
def server(run: str, core: int) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    words = [sys.executable, "-m", "petriscope", "serve", run, "--port", "0", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = Path(os.environ.get("TMPDIR", "/tmp")) / "serve-benchmark.log"
    with log.open("w+") as lines, subprocess.Popen(words, env=environment, stderr=lines, text=True) as process:
        os.sched_setaffinity(process.pid, {core})
        try:
            while not (found := [json.loads(line) for line in log.read_text().splitlines() if "listening" in line]):
                time.sleep(0.2)
            port = int(found[0]["url"].rstrip("/").rpartition(":")[2])
            while asyncio.run(once(port, b"GET /health/ready HTTP/1.1\r\nHost: x\r\n\r\n")) != 200:
                time.sleep(0.5)
            yield port, process
        finally:
            process.terminate()
            process.wait(60)


def request(content: bytes) -> bytes:
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


class Client(asyncio.Protocol):
    """A connection that sends one request after the other: as fast as answers come, or at given times."""

    def __init__(self, requests: list[bytes], until: float, pause: float, times: list[float], statuses: Counter[int]):
        self.requests, self.until, self.pause, self.times, self.statuses = requests, until, pause, times, statuses
        self.done = asyncio.get_running_loop().create_future()
        self.received = bytearray()
        self.waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self.transport = transport
        self.wait()

    def wait(self) -> None:
        if time.perf_counter() > self.until:
            self.transport.close()
            return
        loop = asyncio.get_running_loop()
        if self.pause:
            loop.call_later(random.expovariate(1 / self.pause), self.send)
        else:
            self.send()

    def send(self) -> None:
        self.start, self.waiting = time.perf_counter(), True
        self.transport.write(random.choice(self.requests))

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, found, body = self.received.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(bytes(head).lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        if len(body) >= length:
            self.times.append(time.perf_counter() - self.start)
            self.statuses[int(head[9:12])] += 1
            self.waiting = False
            self.received.clear()
            self.wait()

    def connection_lost(self, error: Exception | None) -> None:
        self.statuses[0] += self.waiting  # a request without an answer
        if not self.done.done():
            self.done.set_result(None)


async def load(port: int, contents: list[bytes], seconds: float, clients: int, rate: float = 0):
    """Seconds per request and counts of statuses, where 0 is a request without an answer. ``rate``: requests per second of all
    clients; 0: as many as possible."""
    times: list[float] = []
    statuses: Counter[int] = Counter()
    requests, until = [request(content) for content in contents], time.perf_counter() + seconds
    pause = clients / rate if rate else 0
    loop = asyncio.get_running_loop()
    made = [
        (await loop.create_connection(lambda: Client(requests, until, pause, times, statuses), "127.0.0.1", port))[1]
        for _ in range(clients)
    ]
    await asyncio.gather(*(client.done for client in made))
    return times, +statuses


async def once(port: int, data: bytes) -> int:
    """The status for some bytes that are sent; 0: the connection was closed without one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        if writer.can_write_eof():
            writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 60)
        return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0
    except OSError:
        return 0
    finally:
        writer.close()


def print_throughput(bare, port: int, process, contents: list[bytes], seconds: float) -> None:
    asyncio.run(load(port, contents, 2, AT_ONCE))
    before, start = cpu_seconds(process.pid), time.perf_counter()
    times, statuses = asyncio.run(load(port, contents, seconds, AT_ONCE))
    took, spent = time.perf_counter() - start, cpu_seconds(process.pid) - before
    full = len(times) / took
    half, _ = asyncio.run(load(port, contents, seconds, AT_ONCE, full / 2))
    rows = [
        *bare,
        (f"server, {AT_ONCE} at a time, one image per request", full, 1000 * spent / len(times)),
    ]
    best = rows[len(BATCHES) - 1]
    print_table(
        ("", "images/s", "processor ms/image", f"share of {best[0]}", "by processor time"),
        [
            (name, f"{speed:,.0f}", f"{ms:.3f}", f"{speed / best[1]:.2f}", f"{best[2] / ms:.2f}")
            for name, speed, ms in rows
        ],
    )
    print_table(
        ("load", "p50 ms", "p99 ms", "statuses"),
        [
            ("full", *percentiles(times), dict(statuses)),
            (f"half ({full / 2:,.0f} images/s)", *percentiles(half), ""),
        ],
    )


def percentiles(times: list[float]) -> tuple[str, str]:
    cuts = statistics.quantiles(times, n=100)
    return f"{1000 * cuts[49]:.1f}", f"{1000 * cuts[98]:.1f}"


def print_long(port: int, process, contents: list[bytes], minutes: float, rate: float, malformed: int) -> None:
    rows = [("before", "", f"{memory(process.pid):.0f}", "")]
    for part in range(4):
        times, statuses = asyncio.run(load(port, contents, 15 * minutes, AT_ONCE, rate))
        rows.append((f"load, quarter {part + 1}", f"{len(times):,}", f"{memory(process.pid):.0f}", dict(statuses)))
    for part in range(4):
        statuses = asyncio.run(send_malformed(port, contents, malformed // 4, part))
        rows.append(
            (f"malformed, quarter {part + 1}", f"{malformed // 4:,}", f"{memory(process.pid):.0f}", dict(statuses))
        )
    rows.append(("good ones afterwards", "", "", dict(asyncio.run(load(port, contents, 1, 1))[1])))
    print_table(("", "requests", "resident MiB", "statuses"), rows)


async def send_malformed(port: int, contents: list[bytes], count: int, seed: int) -> Counter[int]:
    """Requests that were damaged in one of several ways, and what the server answers; 0: it closed the connection."""
    rng = random.Random(seed)
    statuses: Counter[int] = Counter()
    waiting = asyncio.Semaphore(16)

    async def send() -> None:
        async with waiting:
            statuses[await once(port, damaged(rng, rng.choice(contents)))] += 1

    await asyncio.gather(*(send() for _ in range(count)))
    return statuses


def print_leaving(port: int, contents: list[bytes], count: int) -> None:
    """Good requests after a flood of clients that send an image and hang up: their statuses, and when the first is answered."""
    asyncio.run(leave(port, contents, count))
    statuses: Counter[int] = Counter()
    start = time.perf_counter()
    while not statuses[200] and time.perf_counter() - start < 60:
        statuses += asyncio.run(load(port, contents, 0.01, 1))[1]
    seconds = f"{time.perf_counter() - start:.2f}"
    print_table(("clients that left", "statuses after them", "seconds to the first 200"), [(count, +statuses, seconds)])


async def leave(port: int, contents: list[bytes], count: int) -> None:
    waiting = asyncio.Semaphore(16)

    async def send(content: bytes) -> None:
        async with waiting:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request(content))
            await writer.drain()
            writer.close()

    await asyncio.gather(*(send(contents[place % len(contents)]) for place in range(count)))


def damaged(rng: random.Random, content: bytes) -> bytes:
    boundary = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    form = boundary + content + b"\r\n--x--\r\n"
    whole = [
        request(content),
        f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(form)}\r\n"
        "\r\n".encode() + form,
        f"POST /predict?max_error={rng.choice(['nan', '-1', '', 'x' * 500, '1e999'])} HTTP/1.1\r\nHost: x\r\n".encode()
        + b"Content-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n" + f"{len(content):x}\r\n".encode() + content
        + b"\r\n0\r\n\r\n",
        b"GET /" + bytes(rng.choices(b"abc%/.?&=", k=20)) + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ]  # fmt: skip
    data = bytearray(rng.choice(whole))
    for _ in range(rng.choice((0, 1, 3, 30))):
        place = rng.randrange(len(data))
        way = rng.randrange(3)
        if way == 0:
            data[place] = rng.randrange(256)
        elif way == 1:
            del data[place : place + rng.randrange(1, 50)]
        else:
            data[place:place] = rng.randbytes(rng.randrange(1, 50))
        if not data:
            break
    return bytes(data)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory(pid: int) -> float:
    """Resident MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
