"""What a tracker is told of a run, and what it has to do."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from petriscope.core.recipe import Recipe, flattened
from petriscope.core.results import Environment, Epoch, Metric, Results

Status = Literal["finished", "failed", "interrupted"]
Scalar = bool | int | float | str
PROJECT = "petriscope"  # where runs go unless a recipe or the tracker's own settings say otherwise


@dataclass(frozen=True)
class Entry:
    """A run as a tracker knows it.

    Args:
        id: by which its library finds it again.
        where: the tracker's place for it, without passwords; for people, and for a local store also to find it again.
    """

    id: str
    where: str


@dataclass(frozen=True)
class Start:
    """A run that begins.

    Args:
        started: seconds since 1970.
    """

    folder: Path
    recipe: Recipe
    environment: Environment
    started: float

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def about(self) -> str:
        """The run in one line, for people."""
        about = f": {self.recipe.about}" if self.recipe.about else ""
        return f"{self.recipe.name}{about} (run folder {self.folder})"

    @property
    def tree(self) -> dict[str, Any]:
        """The recipe as plain nested values."""
        return self.recipe.model_dump(mode="json", exclude={"training": {"track"}})

    @property
    def settings(self) -> dict[str, Scalar]:
        """The recipe by dotted keys, as ``--set`` takes them; ``null`` where there is no value."""
        return {key: "null" if value is None else value for key, value in flattened(self.tree).items()}

    @property
    def facts(self) -> dict[str, Scalar]:
        """Versions, hardware and data."""
        about, data = self.environment, self.environment.data
        facts: dict[str, Scalar | None] = {
            "command": about.command,
            "started": about.started,
            "python": about.python,
            **about.packages,
            **about.hardware.as_json(),
            "device": about.device,
            "precision": about.precision,
            "parameters": about.parameters,
            "task": data.task,
            "data.source": data.source,
            "data.fingerprint": data.fingerprint,
            "data.classes": len(data.classes),
            **{f"data.{name}": split.images for name, split in data.splits.items()},
        }
        return {key: value for key, value in facts.items() if value is not None}


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Args:
        metrics: by name, such as ``result/val/accuracy``.
        figures: PNG files by name.
        files: the report and what the run was made from and resulted in; those that exist.
        model: None if there is no model file.
        epochs: the number of the last one.
        at: seconds since 1970.
    """

    metrics: Mapping[str, float]
    figures: Mapping[str, Path]
    files: tuple[Path, ...]
    model: Path | None
    epochs: int
    at: float


class Tracker(Protocol):
    """One run in a tracker. Methods may raise whatever the library raises; `petriscope.run.trackers.follow` deals with it."""

    def begin(self, start: Start, known: Entry | None) -> Entry:
        """Begin a run, or go on with the ``known`` one. If the tracker does not have it any more, a new one is begun."""

    def log(self, epoch: int, metrics: Mapping[str, float], at: float) -> None:
        """Log the metrics of an epoch, at so many seconds since 1970. Epochs come in order, each once."""

    def deliver(self, outcome: Outcome) -> None:
        """Log what came of the run. That of an earlier call is replaced or added to, as the tracker does it."""

    def close(self, status: Status, why: str, at: float) -> None:
        """End the run, and wait until all is written. ``why``: what ended it, unless it is finished."""


def metrics_of(epoch: Epoch) -> dict[str, float]:
    """The metrics of an epoch that have a value. Trackers group them by what stands before the slash."""
    parts = {"train": epoch.train, "val": epoch.val or {}}
    found = {f"{part}/{name}": value for part, metrics in parts.items() for name, value in metrics.items()}
    found |= {"lr": epoch.lr, "seconds": epoch.seconds, "images_per_second": epoch.images_per_second}
    return {name: value for name, value in found.items() if value is not None}


def metrics_of_results(results: Results) -> dict[str, float]:
    """The metrics of the finished run that have a value, with the ends of their intervals."""
    found: dict[str, float | None] = {}
    for split, evaluation in results.evaluated.items():
        found[f"result/{split}/n"] = evaluation.n
        for name, metric in evaluation.metrics.items():
            found |= _with_interval(f"result/{split}/{name}", metric)
    if (training := results.training) is not None:
        found |= {f"result/{key}": getattr(training, key) for key in ("epochs", "best_epoch", "best", "seconds")}
    if results.cost is not None:
        found |= {f"cost/{key}": value for key, value in results.cost.as_json().items()}
    return {name: float(value) for name, value in found.items() if value is not None}


def _with_interval(name: str, metric: Metric) -> dict[str, float | None]:
    low, high = metric.ci95 or (None, None)
    return {name: metric.value, f"{name}_low": low, f"{name}_high": high}


def plain_name(text: str, otherwise: str = "run") -> str:
    """A name with letters, digits, hyphens, underscores and dots of ASCII alone, which every tracker takes."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.")[:100] or otherwise


def new_id() -> str:
    return secrets.token_hex(4)
