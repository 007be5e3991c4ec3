"""Prediction of image files, as the model's task requires."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from petriscope.core.recipe import TTA
from petriscope.data.in_memory import AnyFile
from petriscope.inference.predictor import Predictor
from petriscope.inference.table import Rows, Wanted
from petriscope.tasks import in_room


def predict_files(
    predictor: Predictor,
    paths: Sequence[AnyFile],
    out: Path | None = None,
    tta: TTA | None = None,
    max_error: float | None = None,
    set_coverage: float | None = None,
    quiet: bool = True,
    without_guarantee: bool = False,
    withdrawn: Callable[[Any], object] | None = None,
) -> Rows:
    """Predict image files, while the rows are read.

    Args:
        out: a CSV file; for segmentation, a folder; None: nothing is written.
        tta: test-time augmentation; None: as in the recipe.
        max_error, set_coverage: see `petriscope.trust.plan.plan_abstention`. If one is given, the images are first
            compared with those of val. Where they are shown not to be like them, nothing is answered.
        without_guarantee: answer them all the same, without any claim.
        withdrawn: called with the comparison, a `petriscope.inference.likeness.Compared`, where guarantees are withdrawn.

    Returns:
        one row per image, see ``predict_files`` in `petriscope.inference.classification` and
        `petriscope.inference.segmentation`.

    Raises:
        RequestError: the task does not support an argument.
    """
    wanted = Wanted(
        out, tta or predictor.recipe.evaluation.tta, max_error, set_coverage, quiet, without_guarantee, withdrawn
    )
    return in_room(predictor.task, "inference").predict_files(predictor, paths, wanted)
