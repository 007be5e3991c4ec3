"""Predictions of image files for tasks without a module of their own: a table of probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from petriscope.core.errors import RequestError
from petriscope.data.in_memory import AnyFile
from petriscope.inference.answers import Answering
from petriscope.inference.decoding import CHUNK
from petriscope.inference.predictor import Predictor
from petriscope.inference.table import Rows, Wanted, check_table, rows_by_chunk


def predict_files(predictor: Predictor, paths: Sequence[AnyFile], wanted: Wanted) -> Rows:
    """One row per image: image, error, and one probability per class (``p_<class>``)."""
    if wanted.max_error is not None or wanted.set_coverage is not None:
        raise RequestError(
            f"--max-error and --set-coverage need a classification model; this is a {predictor.task.name} model"
        )
    check_table(wanted.out, paths)
    names = [f"p_{name}" for name in predictor.classes]

    def rows_of(images: list[np.ndarray], _: list[AnyFile]) -> list[dict[str, Any]]:
        found = predictor.probabilities(np.stack(images), wanted.tta)
        return [dict(zip(names, map(float, p), strict=True)) for p in found]

    columns = ["image", "error", *names]
    return Rows(columns, rows_by_chunk(predictor, paths, columns, rows_of, CHUNK, wanted.quiet), wanted.out)


def answering(predictor: Predictor, wanted: Wanted) -> Answering:
    """
    Raises:
        RequestError: always; images of such a task are not answered.
    """
    raise RequestError(f"--shards needs a model for labels; this is a {predictor.task.name} model")
