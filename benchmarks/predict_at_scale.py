"""`predict --shards` beside a bare loop that decodes the same files with Pillow and runs the same network; with ``--packed``,
from tar files; with ``--jobs``, two processes beside one; with ``--kills``, a prediction that is killed again and again, and the
memory of its processes.

A process is given one core and one thread. The first comparison is of processor time, which other programs on the machine change
less; the others are of time on the clock.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from common import in_turn, print_machine, print_table, ratio
from petriscope import api
from petriscope.core.recipe import load_recipe
from petriscope.data import load_dataset
from petriscope.experiments import in_shards
from petriscope.inference.predictor import Predictor, load_model
from petriscope.inference.tta import predict_batch

CHUNK = 256


def batched(files: Iterable[Any], count: int) -> Iterator[list[Any]]:
    waiting = iter(files)
    while block := list(islice(waiting, count)):
        yield block


def train(model: str, size: int, folder: Path) -> Path:
    """A run, trained for an epoch: what it says does not matter here."""
    data = {"source": "synthetic-smear:400", "size": size}
    settings = ("training.epochs=1", "training.device=cpu", "evaluation.stress=off", "evaluation.bootstrap=100")
    return api.train(load_recipe("demo", settings, data=data, model=model), folder / "run", quiet=True).folder


def write_images(run: Path, folder: Path, count: int, suffix: str) -> Path:
    """Files of the images of the run's source, at most 1,000 in a folder."""
    images = load_dataset(load_model(run).recipe.data).train.images
    for number in range(count):
        path = folder / "images" / f"{number // 1000:04d}" / f"{number:07d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        changed = images[number % len(images)].copy()
        changed[0, 0] = number % 251, number // 251 % 251, number // 63001
        Image.fromarray(changed).save(path, **({"compress_level": 1} if suffix == "png" else {"quality": 90}))
    return folder / "images"


def pack(images: Path, folder: Path) -> Path:
    """A tar file for each folder of images."""
    (folder / "packed").mkdir()
    for each in sorted(images.iterdir()):
        with tarfile.open(folder / "packed" / f"{each.name}.tar", "w") as archive:
            for path in sorted(each.iterdir()):
                archive.add(path, path.name)
    return folder / "packed"


def files_of(images: Path) -> Iterator[Path | BytesIO]:
    yield from sorted(images.rglob("*.[pj][np]g"))
    for shard in sorted(images.glob("*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive:
                yield BytesIO(archive.extractfile(member).read())


def bare(predictor: Predictor, images: Path) -> float:
    """Decode and run the network, in the same memory layout and precision, and nothing else."""
    start = time.process_time()
    with torch.inference_mode():
        for files in batched(files_of(images), CHUNK):
            pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
            batch = torch.from_numpy(pixels)
            run = (predictor.model, batch, predictor.normalize, predictor.number_format, "none", predictor.task)
            predict_batch(*run).exp().numpy()
    return time.process_time() - start


def ours(run: Path, images: Path, out: Path, shards: int, **asked: float) -> float:
    """Without listing, opening the model and, as far as something is guaranteed, the comparison of all images."""
    shutil.rmtree(out, ignore_errors=True)
    options = in_shards.Options(**asked)
    facts = {
        "version": in_shards.__version__,
        "digest": "",
        "sources": [str(images)],
        "asked": shards,
        "options": options,
    }
    in_shards._begin(out, str(run), facts, "cpu")
    work = in_shards._resumed(out, facts, "cpu")
    work.answering  # noqa: B018 (opens the model)
    start = time.process_time()
    work.predict()
    return time.process_time() - start


def command(run: Path, images: Path, out: Path, shards: int, jobs: int, cores: int) -> float:
    """The command in processes of its own, on so many cores. Returns the seconds between its first and its last shard, for all
    shards but the first of each process, so that starting and summarizing do not count."""
    shutil.rmtree(out, ignore_errors=True)
    subprocess.run(
        _words(run, images, out, shards, jobs), check=True, preexec_fn=_pinned(cores), stderr=subprocess.DEVNULL
    )
    times = sorted(path.stat().st_mtime for path in out.glob("shard-*.parquet"))
    return (times[-1] - times[jobs - 1]) / (shards - jobs) * shards


def _words(run: Path, images: Path, out: Path, shards: int, jobs: int) -> list[str]:
    asked = ["--out", str(out), "--shards", str(shards), "--jobs", str(jobs), "--device", "cpu"]
    return [sys.executable, "-m", "petriscope", "predict", str(run), str(images), *asked]


def _pinned(cores: int) -> Callable[[], None]:
    every = sorted(os.sched_getaffinity(0))
    return lambda: os.sched_setaffinity(0, every[:cores])


def kill_again_and_again(run: Path, images: Path, out: Path, shards: int, every: float) -> None:
    """Predict, with all processes killed every so many seconds, until it is finished."""
    shutil.rmtree(out, ignore_errors=True)
    kills, start, peaks = 0, time.perf_counter(), list[float]()
    while True:
        process = subprocess.Popen(
            _words(run, images, out, shards, 2), stderr=subprocess.DEVNULL, start_new_session=True
        )
        until, peak = time.perf_counter() + every, 0.0
        while process.poll() is None and time.perf_counter() < until:
            peak = max([peak, *(_resident(each) for each in _group(process.pid))])
            time.sleep(0.5)
        peaks.append(peak)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        print(f"  kill {kills}: {len([*out.glob('shard-*.parquet')])} shards of {shards}, {peak:.0f} MiB", flush=True)
    names = [
        name for path in out.glob("shard-*.parquet") for name in pq.read_table(path, columns=["image"])[0].to_pylist()
    ]
    expected = {str(path) for path in images.rglob("*.[pj][np]g")}
    once = len(names) == len(expected) and {*names} == expected
    print(
        f"{len(names):,} rows of {len(expected):,} images, each {'once' if once else 'NOT once'}; {kills} kills in "
        f"{time.perf_counter() - start:.0f} s; most memory of a process {max(peaks):.0f} MiB, from start to start "
        f"{min(peaks):.0f} to {max(peaks):.0f}"
    )


def _group(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found += [int(path.parent.name)] if int(fields[2]) == pid else []
    return found


def _resident(pid: int) -> float:
    """MiB."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--suffix", choices=("png", "jpg"), default="png")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", action="store_true", help="compare two processes with one")
    parser.add_argument("--kills", type=float, help="kill every so many seconds")
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--packed", action="store_true", help="from tar files of 1,000 images")
    args = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        run = train(args.model, args.size, folder)
        images = write_images(run, folder, args.images, args.suffix)
        if args.kills:
            kill_again_and_again(run, images, folder / "out", args.shards, args.kills)
            return
        if args.jobs:
            both = [lambda jobs=jobs: command(run, images, folder / "out", args.shards, jobs, jobs) for jobs in (1, 2)]
            one, two = in_turn(both, args.rounds)
            rows = [
                [f"{jobs}", f"{args.images / min(each):.0f}", ratio(each, one)] for jobs, each in ((1, one), (2, two))
            ]
            print_table(["processes", "images/s", "times one"], rows)
            return
        if args.packed:
            images = pack(images, folder)
        _pinned(1)()
        torch.set_num_threads(1)
        predictor = load_model(run, "cpu")
        ways = {
            "bare loop": lambda: bare(predictor, images),
            "predict --shards": lambda: ours(run, images, folder / "out", args.shards),
            "with --max-error": lambda: ours(run, images, folder / "out", args.shards, max_error=0.1),
        }
        times = in_turn([*ways.values()], args.rounds)
        rows = [
            [name, f"{args.images / min(each):.0f}", ratio(each, times[0])]
            for name, each in zip(ways, times, strict=True)
        ]
        print_table(["", "images/s", "of the bare loop"], rows)


if __name__ == "__main__":
    main()
