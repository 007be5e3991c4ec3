"""Simultaneous trainings, each in its own process with a share of the cores.

One training on few small images does not keep all cores busy."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from petriscope.core.device import cores
from petriscope.core.errors import Interrupted
from petriscope.core.files import write_text
from petriscope.core.progress import progress, say
from petriscope.experiments.suite import Planned
from petriscope.run.folder import Run
from petriscope.training.loop import interruptible

LOOK_EVERY = 0.25  # seconds


@dataclass(frozen=True)
class Worker:
    """A process of Petriscope.

    Args:
        log: the file that receives its output.
    """

    process: subprocess.Popen[bytes]
    log: Path

    def error(self) -> str:
        """The error message of a process that failed. An unexpected error is shown in full; the message is its last line."""
        text = self.log.read_text(encoding="utf-8", errors="replace").strip()
        _, told, error = f"\n{text}".rpartition("\nerror: ")
        if told:
            return error
        say(text)
        last = text.rpartition("\n")[2]
        return last or f"it ended with status {self.process.returncode} and no message; it may have run out of memory"


@dataclass(frozen=True)
class Child:
    """A training in progress."""

    planned: Planned
    worker: Worker

    @property
    def epochs(self) -> int:
        return len(Run(self.planned.folder).history)


def train_side_by_side(trainings: Sequence[Planned], jobs: int, quiet: bool) -> dict[str, str]:
    """Train or resume runs, several at a time.

    Args:
        trainings: runs of recipes, not ensembles.
        jobs: number of simultaneous trainings. The cores are divided among them unless OMP_NUM_THREADS is set.

    Returns:
        error messages, by run.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the trainings in progress have saved a checkpoint.
    """
    failures: dict[str, str] = {}
    waiting = list(trainings)
    under_way: list[Child] = []
    ended = 0  # planned epochs of the trainings that have ended, including those that failed
    total = sum(planned.recipe.training.epochs for planned in trainings)
    with (
        tempfile.TemporaryDirectory(prefix="petriscope-") as scratch,
        interruptible() as stop,
        progress("training", total, "epochs") as bar,
    ):
        bar.start_from(sum(len(Run(planned.folder).history) for planned in trainings))
        try:
            while waiting or under_way:
                while waiting and len(under_way) < jobs:
                    under_way.append(_start(waiting.pop(0), jobs, Path(scratch)))
                time.sleep(LOOK_EVERY)
                if stop.is_set():
                    raise Interrupted("interrupted")
                for child in [child for child in under_way if child.worker.process.poll() is not None]:
                    under_way.remove(child)
                    ended += child.planned.recipe.training.epochs
                    if child.worker.process.returncode != 0:
                        failures[str(child.planned)] = child.worker.error()
                        say(f"failed: {child.planned}: {failures[str(child.planned)]}")
                now = ended + sum(child.epochs for child in under_way)
                if now > bar.done and not quiet:
                    through = len(trainings) - len(waiting) - len(under_way)
                    bar.advance(now - bar.done, f"{through} of {len(trainings)} runs")
        finally:
            stop_workers([child.worker for child in under_way])
    return failures


def _start(planned: Planned, jobs: int, scratch: Path) -> Child:
    stem = scratch / planned.folder.name
    if planned.begun:
        what = ["--resume", str(planned.folder)]
    else:
        recipe = stem.with_name(f"{stem.name}.yaml")
        write_text(recipe, planned.recipe.to_yaml())
        what = [str(recipe), "--out", str(planned.folder)]
    log = stem.with_name(f"{stem.name}.log")
    return Child(planned, start_worker(["train", *what, "--quiet"], log, jobs))


def start_worker(words: Sequence[str], log: Path, jobs: int) -> Worker:
    """Start a command of Petriscope in a process of its own.

    Args:
        jobs: number of simultaneous processes. The cores are divided among them unless OMP_NUM_THREADS is set.
    """
    threads = max(1, cores() // jobs)
    with log.open("wb") as handle:
        process = subprocess.Popen(
            [sys.executable, "-m", "petriscope", *words],
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=handle,
            env={"OMP_NUM_THREADS": str(threads), **os.environ},
        )
    return Worker(process, log)


def stop_workers(workers: Sequence[Worker]) -> None:
    """Ask processes to end, and wait until they have."""
    for worker in workers:
        worker.process.terminate()  # Ctrl-C in a terminal has reached it already; a second signal does no harm
    for worker in workers:
        worker.process.wait()
