"""Evaluation of tasks that have no module of their own here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from petriscope.core.recipe import TTA
from petriscope.core.results import Evaluation
from petriscope.data.batches import Batches
from petriscope.data.imageset import Dataset, ImageSet
from petriscope.inference.predictor import Prediction, Predictor
from petriscope.inference.tta import predict_batches
from petriscope.run.folder import Run

ENSEMBLES: tuple[str, ...] = ()  # the ways in which runs of the task can be joined


@dataclass(frozen=True)
class Seen:
    """What a network says of val, for an ensemble to be chosen by.

    Args:
        outputs: as `petriscope.tasks.base.Task.collect` gives them.
        of_truth: the probability of the true class of each image, or of each pixel of a sample, float64 [S].
        score: in the metric that the task compares by.
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
    """The metrics of a split, and what they were computed from.

    Args:
        known: what the predictor says of these images, where that is known already.
    """
    settings, task = predictor.recipe.evaluation, predictor.task
    predictions = predict_batches(
        predictor.model,
        Batches(images, predictor.device, predictor.recipe.data.memory),
        predictor.normalize,
        predictor.number_format,
        tta,
        settings.batch_size,
        None if quiet else f"evaluating {split}",
    )
    outputs = task.collect(predictions, len(images), len(predictor.classes), full=True)
    metrics = task.judge(outputs, images, settings.bootstrap)
    about = {"task": task.name, "split": split, "tta": tta, "source": source}
    return Evaluation.model_validate({**about, **metrics}), outputs


def record(
    run: Run, predictor: Predictor, dataset: Dataset, split: str, evaluation: Evaluation, outputs: Any, quiet: bool
) -> Evaluation:
    """Keep an evaluated split of the run's own data in the run: metrics and predictions."""
    run.add_predictions(split, predictor.task.table(outputs, dataset.split(split), split))
    run.add_results(**{split: evaluation})
    return evaluation
