"""What the runs that were adapted to another place have in common, with labels or without."""

from __future__ import annotations

from pathlib import Path

from petriscope.core.results import Metric, Normalization, TrainingSummary
from petriscope.data import Dataset
from petriscope.experiments.evaluate import evaluate_into, evaluate_split
from petriscope.inference.predictor import Predictor, save_model
from petriscope.inference.speed import cost
from petriscope.models.cost import parameters
from petriscope.run.folder import Run, begin_run

MONITORED = "accuracy"
SUGGESTED = "suggested.csv"


def begin_adapted(folder: Path, predictor: Predictor, dataset: Dataset, training: TrainingSummary) -> Run:
    """Begin the run of an adapted predictor in a new folder, with its model."""
    begun = begin_run(
        folder,
        predictor.recipe,
        dataset,
        device=str(predictor.device),
        precision=predictor.number_format,
        parameters=parameters(predictor.model),
        normalize=Normalization(mean=predictor.mean, std=predictor.std),
    )
    weights = {key: value.detach().cpu() for key, value in predictor.model.state_dict().items()}
    facts = {"environment": begun.environment.as_json(), "training": training.as_json()}
    save_model(begun.model, weights, predictor, facts)
    begun.add_results(cost=cost(predictor), training=training)
    return begun


def cost_at_home(begun: Run, base: Predictor, predictor: Predictor, dataset: Dataset, quiet: bool) -> dict[str, Metric]:
    """The accuracy on val of the old place before and after, as results call them; empty without val. The adapted run gets
    its evaluation."""
    if dataset.val is None:
        return {}
    tta = predictor.recipe.evaluation.tta
    plain, _ = evaluate_split(base, dataset.val, "val", tta, base.recipe.data.origin, quiet)
    own, _ = evaluate_into(begun, predictor, dataset, "val", tta, quiet)
    return {"home_before": plain.metric(MONITORED), "home_after": own.metric(MONITORED)}
