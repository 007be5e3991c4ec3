"""What the runs that were adapted to another place have in common, with labels or without."""

from __future__ import annotations

from pathlib import Path

from petriscope.core.results import Metric, Normalization, TrainingSummary
from petriscope.data import Dataset
from petriscope.experiments.evaluate import evaluate_into, evaluate_split
from petriscope.experiments.made import begin_made
from petriscope.inference.predictor import Predictor
from petriscope.run.folder import Run

SUGGESTED = "suggested.csv"


def begin_adapted(folder: Path, predictor: Predictor, dataset: Dataset, training: TrainingSummary) -> Run:
    """Begin the run of an adapted predictor in a new folder, with its model."""
    normalize = Normalization(mean=predictor.mean, std=predictor.std)
    return begin_made(folder, predictor, dataset, training, normalize=normalize)


def cost_at_home(begun: Run, base: Predictor, predictor: Predictor, dataset: Dataset, quiet: bool) -> dict[str, Metric]:
    """The metric that counts most, on val of the old place, before and after, as results call them; empty without val. The
    adapted run gets its evaluation."""
    if dataset.val is None:
        return {}
    tta = predictor.recipe.evaluation.tta
    plain, _ = evaluate_split(base, dataset.val, "val", tta, base.recipe.data.origin, quiet)
    own, _ = evaluate_into(begun, predictor, dataset, "val", tta, quiet)
    metric = predictor.task.metrics[0].key
    return {"home_before": plain.metric(metric), "home_after": own.metric(metric)}
