"""A split judged where targets are labels or masks, and what a run keeps of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from petriscope.data import Dataset, ImageSet
from petriscope.data.batches import Batches
from petriscope.experiments.diagnostics import inspect, inspect_masks
from petriscope.inference.predictor import Answers, Predictor
from petriscope.inference.segmentation import evaluate_masks, keep_masks
from petriscope.inference.tta import TTA
from petriscope.metrics.classification import full_metrics
from petriscope.metrics.segmentation import Tally
from petriscope.run.folder import Run
from petriscope.trust.state import trust_metrics

if TYPE_CHECKING:
    import pandas as pd

MISTAKES_SHOWN = 24


def evaluate_into(
    run: Run,
    predictor: Predictor,
    dataset: Dataset,
    split: str,
    tta: TTA | None = None,
    quiet: bool = False,
    answers: Answers | None = None,
) -> tuple[dict[str, Any], np.ndarray | Tally]:
    """Evaluate a split of the run's own data, and keep metrics, predictions and images in the run.

    Args:
        answers: where the images have been looked at already.

    Returns:
        metrics, and probabilities, float32 [N, K]; where targets are masks, the counts of each image.
    """
    images = dataset.split(split)
    if predictor.segments:
        result, tally = evaluate_masks(predictor, images, split, tta, str(run.recipe.data.source), quiet)
        keep_masks(run, predictor, images, split, result, tally)
        return {**result, **inspect_masks(run, predictor, images, split, tally, quiet)}, tally
    result, probabilities = evaluate_labels(predictor, images, split, tta, str(run.recipe.data.source), quiet, answers)
    _record(run, images, split, result, probabilities)
    return {**result, **inspect(run, predictor, dataset, split, probabilities, quiet)}, probabilities


def evaluate_labels(
    predictor: Predictor,
    images: ImageSet,
    split: str,
    tta: TTA | None,
    source: str,
    quiet: bool,
    answers: Answers | None = None,
) -> tuple[dict[str, Any], np.ndarray]:
    """Metrics and probabilities."""
    settings, classes = predictor.recipe.evaluation, predictor.classes
    tta = tta or settings.tta
    if answers is None:
        batches = Batches(images, predictor.device, predictor.recipe.data.memory)
        answers = predictor.answer_set(batches, tta, None if quiet else f"evaluating {split}")
    metrics = full_metrics(answers.probabilities, images.targets, classes, settings.bootstrap)
    trust = trust_metrics(
        answers.raw,
        answers.probabilities,
        images.targets,
        answers.outlier,
        classes,
        predictor.trust.references.get(tta),
        predictor.temperature(tta),
    )
    return {"split": split, "tta": tta, "source": source, **metrics, **trust}, answers.probabilities


def _record(run: Run, images: ImageSet, split: str, result: dict[str, Any], probabilities: np.ndarray) -> None:
    table = prediction_table(images, split, probabilities)
    run.add_predictions(split, table)
    run.add_results(**{split: result})
    wrong = np.flatnonzero((table["target"] != table["predicted"]).to_numpy())
    worst = wrong[np.argsort(-table["confidence"].to_numpy()[wrong], kind="stable")][:MISTAKES_SHOWN]
    run.add_gallery(
        **{f"mistakes_{split}": images.take(worst), f"mistakes_{split}_ids": images.ids[worst].astype(np.str_)}
    )


def prediction_table(images: ImageSet, split: str, probabilities: np.ndarray) -> pd.DataFrame:
    """One row per image: id, split, target, predicted, confidence, ``p_<class>``."""
    import pandas as pd

    names = np.array(images.classes)
    predicted = probabilities.argmax(1)
    columns: dict[str, Any] = {
        "id": images.ids.astype(object),
        "split": split,
        "target": names[images.targets].astype(object),
        "predicted": names[predicted].astype(object),
        "confidence": probabilities.max(1),
    }
    return pd.DataFrame({**columns, **{f"p_{name}": probabilities[:, k] for k, name in enumerate(names)}})
