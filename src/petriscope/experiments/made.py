"""The run of a model that is made of others: adapted, or joined."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from petriscope.core.results import TrainingSummary
from petriscope.data import Dataset
from petriscope.inference.predictor import Predictor, save_model
from petriscope.inference.speed import cost
from petriscope.models.cost import parameters
from petriscope.run.folder import Run, begin_run


def begin_made(folder: Path, predictor: Predictor, dataset: Dataset, training: TrainingSummary, **facts: Any) -> Run:
    """Begin the run of a predictor in a new folder, with its model.

    Args:
        facts: more about it for ``environment.json``.
    """
    begun = begin_run(
        folder,
        predictor.recipe,
        dataset,
        device=str(predictor.device),
        precision=predictor.number_format,
        parameters=parameters(predictor.model),
        **facts,
    )
    weights = {key: value.detach().cpu() for key, value in predictor.model.state_dict().items()}
    about = {"environment": begun.environment.as_json(), "training": training.as_json()}
    save_model(begun.model, weights, predictor, about)
    begun.add_results(cost=cost(predictor), training=training)
    return begun


def trained_together(runs: Sequence[Run]) -> TrainingSummary:
    """How long the trainings of several runs took in all."""
    trained = [run.results.training for run in runs]
    seconds = sum((each.seconds or 0.0) if each is not None else 0.0 for each in trained)
    return TrainingSummary(seconds=round(seconds, 2), monitor=None, kept="last")
