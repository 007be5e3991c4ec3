"""Evaluation of tasks that have no module of their own in this room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from petriscope.core.progress import TimeLeft, unlimited
from petriscope.core.recipe import TTA
from petriscope.core.results import Evaluation
from petriscope.data.imageset import Dataset, ImageSet
from petriscope.data.tile_sets import batches_of
from petriscope.inference.base import Prediction
from petriscope.inference.predictor import Predictor
from petriscope.run.folder import Run

ENSEMBLES: tuple[str, ...] = ()  # ensemble methods that the task supports


@dataclass(frozen=True)
class Seen:
    """The predictions of a network on val, from which an ensemble is built.

    Args:
        outputs: what `petriscope.tasks.base.Task.collect` returned.
        of_truth: the probability of the true class, per image or per pixel of a sample, float64 [S].
        score: the metric that the task chooses networks by, see `petriscope.tasks.base.Task.score`.
    """

    outputs: Any
    of_truth: np.ndarray
    score: float


def evaluate(
    predictor: Predictor,
    images: ImageSet,
    split: str,
    tta: TTA,
    source: str,
    quiet: bool,
    known: Prediction | None = None,
) -> tuple[Evaluation, Any]:
    """The metrics of a split, and the outputs that they were computed from.

    Args:
        known: the predictions for these images, if they were computed before.
    """
    settings, task = predictor.recipe.evaluation, predictor.task
    batches = batches_of(images, predictor.device, predictor.recipe.data)
    predictions = predictor.outputs(batches, tta, None if quiet else f"evaluating {split}")
    outputs = task.collect(predictions, len(images), len(predictor.classes), full=True)
    metrics = task.judge(outputs, images, settings.bootstrap)
    about = {"task": task.name, "split": split, "tta": tta, "source": source}
    return Evaluation.model_validate({**about, **metrics}), outputs


def record(
    run: Run,
    predictor: Predictor,
    dataset: Dataset,
    split: str,
    evaluation: Evaluation,
    outputs: Any,
    quiet: bool,
    left: TimeLeft = unlimited,
) -> Evaluation:
    """Save an evaluated split of the run's own data in the run: metrics and predictions.

    Args:
        left: the time that there is for what can be left out, such as explanations.
    """
    images = dataset.split(split)
    table = predictor.task.table(outputs, images, split)
    if images.domains is not None:
        table.insert(2, "domain", images.domains.astype(object))
    run.add_predictions(split, table)
    run.add_results(**{split: evaluation})
    return evaluation
