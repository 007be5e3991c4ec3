"""Run commands in forks of a process that has Petriscope loaded, and say what went wrong. For Linux.

A command costs a fork instead of a start: twenty and more per second on one core.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import re
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

MEMORY = 8 << 30  # bytes of address space that a command may take beyond what the warm process has
KILLED_AFTER = 10.0  # seconds that a command gets to end once it was interrupted
LEFTOVER = re.compile(r"^\..*(\.tmp|\.[a-z0-9_]{8})$")
WARNING = re.compile(r"\b[A-Z]\w+Warning: .*")
FRAME = re.compile(r'File "[^"]*/petriscope/([^"]+)", line (\d+)')


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes:
        status: exit status; minus the signal that ended it; None if it did not end in time.
        interrupted: it ran longer than allowed, and was sent Ctrl-C.
    """

    status: int | None
    out: str
    err: str
    seconds: float
    interrupted: bool = False

    @property
    def finished(self) -> bool:
        return self.status == 0

    def problem(self) -> str:
        """What no command may do, in a line that is equal for the same fault; empty if there is nothing."""
        text = self.out + self.err
        if self.status is None:
            return "hangs"
        if "Traceback (most recent call last)" in text:
            frames = FRAME.findall(text)
            where = f"{frames[-1][0]}:{frames[-1][1]}" if frames else "?"
            last = [line for line in text.strip().splitlines() if line.strip()][-1]
            return f"traceback at {where}: {last.split(':')[0][:80]}"
        if self.status < 0:
            return f"died by {signal.Signals(-self.status).name}"
        if self.interrupted and self.status == 130:
            return ""
        if self.status not in (0, 1, 2):
            return f"exit status {self.status}"
        if self.status and len(self.err.split()) < 4:
            return "failed without a sentence"
        if warned := WARNING.search(text):
            return f"warning of a library: {warned.group()[:100]}"
        return ""


def warm_up() -> None:
    """Import all of Petriscope and what it imports late. One thread, since threads do not survive a fork."""
    import torch

    import petriscope

    torch.set_num_threads(1)
    for module in pkgutil.walk_packages(petriscope.__path__, "petriscope."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in (
        "torch._dynamo",
        "onnxruntime",
        "pandas",
        "pyarrow.parquet",
        "sklearn.covariance",
        "sklearn.metrics",
        "scipy.stats",
        "jinja2",
    ):
        importlib.import_module(name)
    Image.init()
    from petriscope.report.rendering import _environment

    for template in _environment().list_templates():
        _environment().get_template(template)
    gc.collect()
    gc.freeze()


class Started:
    """A command that runs in a fork, in ``folder``. ``before`` is called in the fork first."""

    def __init__(self, words: list[str], folder: Path, before: Callable[[], None] | None = None) -> None:
        self.began = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        ends = [os.pipe(), os.pipe()]
        self.pid = os.fork()
        if not self.pid:
            _become(words, folder, before, ends[0][1], ends[1][1])
        for _, write in ends:
            os.close(write)
        self._streams = {read: bytearray() for read, _ in ends}
        self._pidfd = os.pidfd_open(self.pid)

    def wait(self, seconds: float = 10.0) -> Outcome:
        """Wait for its end. After ``seconds`` it is interrupted, and killed if it does not end then."""
        interrupted = False
        until = self.began + seconds
        while not self._ended_by(until):
            if interrupted:
                os.killpg(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                return self._outcome(None, interrupted)
            interrupted, until = True, time.monotonic() + KILLED_AFTER
            os.kill(self.pid, signal.SIGINT)
        _, status = os.waitpid(self.pid, 0)
        return self._outcome(os.waitstatus_to_exitcode(status), interrupted)

    def _ended_by(self, until: float) -> bool:
        waiting = [self._pidfd, *self._streams]
        while (left := until - time.monotonic()) > 0:
            ready = select.select(waiting, [], [], left)[0]
            for stream in set(ready) & set(self._streams):
                piece = os.read(stream, 1 << 16)
                self._streams[stream] += piece
                if not piece:
                    waiting.remove(stream)
            if self._pidfd in ready:
                return True
        return False

    def _outcome(self, status: int | None, interrupted: bool) -> Outcome:
        texts = []
        for stream, got in self._streams.items():
            os.set_blocking(stream, False)
            try:
                while piece := os.read(stream, 1 << 16):
                    got += piece
            except BlockingIOError:  # held open by what the command left running
                pass
            os.close(stream)
            texts.append(got.decode("utf-8", "backslashreplace"))
        os.close(self._pidfd)
        return Outcome(status, texts[0], texts[1], time.monotonic() - self.began, interrupted)


def run(words: list[str], folder: Path, seconds: float = 10.0, before: Callable[[], None] | None = None) -> Outcome:
    return Started(words, folder, before).wait(seconds)


def counted(numbers: Sequence[int], what: str) -> Iterator[int]:
    """The numbers, with a line on stderr every 15 s that says how many are done and how long the rest will take."""
    began = said = time.monotonic()
    for done, number in enumerate(numbers):
        now = time.monotonic()
        if done and now - said > 15:
            said = now
            left = (now - began) / done * (len(numbers) - done)
            sys.stderr.write(f"{done:,} of {len(numbers):,} {what}, about {left / 60:.0f} min left\n")
        yield number


def in_workers(jobs: int, folder: Path, work: Callable[[int], Iterable[Any]]) -> list[Any]:
    """What ``work`` gives for each of the numbers below ``jobs``, as JSON has it; each in a process of its own.

    Raises:
        RuntimeError: a worker failed.
    """
    workers = {}
    for job in range(jobs):
        to = folder / f"found-{job}.jsonl"
        pid = os.fork()
        if not pid:
            try:
                with to.open("w", encoding="utf-8") as file:
                    for found in work(job):
                        file.write(json.dumps(found) + "\n")
                        file.flush()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        workers[pid] = to
    out = []
    for pid, to in workers.items():
        if os.waitpid(pid, 0)[1]:
            raise RuntimeError("a worker failed; what it printed is above")
        out += [json.loads(line) for line in to.read_text("utf-8").splitlines()]
    return out


def leftovers(folder: Path) -> list[str]:
    """Temporary files and half-made folders below ``folder``."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*") if LEFTOVER.match(path.name))


def _become(words: list[str], folder: Path, before: Callable[[], None] | None, out: int, err: int) -> None:
    """Be the command. Never returns."""
    status = 1
    try:
        os.setsid()
        os.chdir(folder)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.closerange(3, 256)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = sys.__stderr__ = open(  # noqa: SIM115
            2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False
        )
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
        sys.argv = ["petriscope", *words]
        if before:
            before()
        from petriscope.cli import main

        main()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                status = status or 1
        os._exit(status & 255)
