"""Simultaneous trainings, each in its own process: here, with a share of the cores, or on a cluster.

One training on few small images does not keep all cores busy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from petriscope.core.errors import Interrupted
from petriscope.core.files import write_text
from petriscope.core.progress import progress, say
from petriscope.experiments.pools import Command, Job, Pool
from petriscope.experiments.suite import Planned
from petriscope.run.folder import Run
from petriscope.training.loop import interruptible

LOOK_EVERY = 0.25  # seconds


@dataclass(frozen=True)
class Child:
    """A training in progress."""

    planned: Planned
    job: Job

    @property
    def epochs(self) -> int:
        return len(Run(self.planned.folder).history)


def train_side_by_side(trainings: Sequence[Planned], pool: Pool, folder: Path, quiet: bool) -> dict[str, str]:
    """Train or resume runs, several at a time.

    Args:
        trainings: runs of recipes, not ensembles.
        pool: where they run.
        folder: where their folders are.

    Returns:
        error messages, by run.

    Raises:
        RequestError: the pool cannot train them; nothing was trained.
        Interrupted: Ctrl-C or SIGTERM; the trainings in progress have saved a checkpoint.
    """
    failures: dict[str, str] = {}
    waiting = list(trainings)
    under_way: list[Child] = []
    ended = 0  # planned epochs of the trainings that have ended, including those that failed
    total = sum(planned.recipe.training.epochs for planned in trainings)
    with (
        pool.scratch(
            folder,
            [planned.recipe.model_dump(mode="json") for planned in trainings],
            [planned.recipe.training.device for planned in trainings],
        ) as scratch,
        interruptible() as stop,
        progress("training", total, "epochs") as bar,
    ):
        bar.start_from(sum(len(Run(planned.folder).history) for planned in trainings))
        try:
            while waiting or under_way:
                while waiting and (pool.most is None or len(under_way) < pool.most):
                    under_way.append(_start(waiting.pop(0), pool, scratch))
                done = pool.wait([child.job for child in under_way], LOOK_EVERY)
                if stop.is_set():
                    raise Interrupted("interrupted")
                for child in [child for child in under_way if child.job in done]:
                    under_way.remove(child)
                    ended += child.planned.recipe.training.epochs
                    if (error := child.job.error()) is not None:
                        failures[str(child.planned)] = error
                        say(f"failed: {child.planned}: {error}")
                now = ended + sum(child.epochs for child in under_way)
                if now > bar.done and not quiet:
                    through = len(trainings) - len(waiting) - len(under_way)
                    bar.advance(now - bar.done, f"{through} of {len(trainings)} runs")
        finally:
            pool.stop([child.job for child in under_way])
    return failures


def _start(planned: Planned, pool: Pool, scratch: Path) -> Child:
    stem, folder = scratch / planned.folder.name, planned.folder.absolute()
    recipe = stem.with_name(f"{stem.name}.yaml")
    write_text(recipe, planned.recipe.to_yaml())
    words = ("train", str(recipe), "--out", str(folder), "--quiet")
    log = stem.with_name(f"{stem.name}.log")
    return Child(planned, pool.start(Command(words, log, folder, planned.recipe.training.device)))
