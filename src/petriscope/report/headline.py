"""The metric at the top of the page, and the sentence next to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from petriscope.core.recipe import Recipe
from petriscope.core.results import Epoch
from petriscope.report import wording
from petriscope.report.metrics import in_sentence
from petriscope.tasks import Task


@dataclass(frozen=True)
class Headline:
    """The value in large type, empty if there is none, and the sentence that it begins."""

    big: str
    rest: str


def before_evaluation(task: Task, history: Sequence[Epoch], recipe: Recipe) -> Headline:
    """The headline of a run that has not been evaluated: the task's first monitored metric after the last epoch."""
    last = history[-1] if history else None
    if last is None or not last.val:
        return Headline("", "There are no metrics on held-out images yet.")
    info = task.info(task.monitors[0])
    value = last.val.get(info.key)
    images = "augmented val images" if recipe.evaluation.augment_val else "val images"
    return Headline(
        wording.percent(value) if info.percent else wording.decimal(value),
        f"{in_sentence(info)} on the {images} after epoch {last.epoch} of {recipe.training.epochs}. "
        "This is not a final metric.",
    )
