"""Tasks that have no module of their own here: there are no explanations for them."""

from __future__ import annotations

import numpy as np

from petriscope.core.errors import RequestError
from petriscope.core.recipe import Part
from petriscope.explain.shown import Explained
from petriscope.inference.predictor import Predictor

COLUMNS: tuple[str, ...] = ()


def explain_images(predictor: Predictor, batch: list[np.ndarray], label: int | None, part: Part) -> Explained:
    """Refuse to explain.

    Raises:
        RequestError: always.
    """
    raise RequestError(f"there are no explanations for models of the task {predictor.task.name}")
