"""Classification of image files: answers, abstentions and prediction sets, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from petriscope.data.in_memory import AnyFile
from petriscope.inference.predict import CHUNK, Rows, Wanted, rows_by_chunk
from petriscope.inference.predictor import Predictor
from petriscope.trust.abstention import plan_abstention


def predict_files(predictor: Predictor, paths: Sequence[AnyFile], wanted: Wanted) -> Rows:
    """One row per image: image, predicted, confidence, error, answer, why, set (if ``set_coverage`` is given), and one
    probability per class (``p_<class>``). ``answer`` is the predicted class, or ``not sure`` with the reasons in ``why``."""
    plan = plan_abstention(
        predictor.trust, predictor.classes, wanted.tta, wanted.max_error, wanted.set_coverage, wanted.quiet
    )
    probabilities = [f"p_{name}" for name in predictor.classes]

    def rows_of(images: np.ndarray, _: list[AnyFile]) -> list[dict[str, Any]]:
        found = predictor.predict(images, wanted.tta)
        rows = []
        for p, answer in zip(found.probabilities, plan.rows(found.probabilities, found.ood), strict=True):
            row = {"predicted": predictor.classes[int(p.argmax())], "confidence": float(p.max()), **answer}
            rows.append({**row, **dict(zip(probabilities, map(float, p), strict=True))})
        return rows

    answers = ["answer", "why"] if wanted.set_coverage is None else ["answer", "why", "set"]
    columns = ["image", "predicted", "confidence", "error", *answers, *probabilities]
    return Rows(columns, rows_by_chunk(predictor, paths, columns, rows_of, CHUNK, wanted.quiet), wanted.out)
