"""Classification of image files: answers, abstentions and prediction sets, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from petriscope.data.in_memory import AnyFile
from petriscope.inference.answers import Answering, answer_files, answered, assumptions
from petriscope.inference.predictor import Predictor
from petriscope.inference.table import Rows, Wanted
from petriscope.models import ENSEMBLE
from petriscope.trust.abstention import NOT_SURE, Abstention
from petriscope.trust.plan import plan_abstention


def predict_files(predictor: Predictor, paths: Sequence[AnyFile], wanted: Wanted) -> Rows:
    """See `petriscope.inference.answers.answer_files`."""
    reweighting = predictor.trust.reweighting

    def doubt(counts: np.ndarray) -> str:
        return "" if reweighting is None else reweighting.prior.doubt(counts, "are predicted as")

    plan = _plan(predictor, wanted)
    return answer_files(predictor, paths, wanted, plan, _given(predictor), _adapts(predictor), doubt)


def answering(predictor: Predictor, wanted: Wanted) -> Answering:
    """How images are answered whose probabilities are known, with the fields of `predict_files`."""
    assumed = assumptions(predictor, _given(predictor))
    sets = [] if wanted.set_coverage is None else ["set"]

    def rows(probabilities: np.ndarray, ood: np.ndarray | None, rules: Abstention) -> list[dict[str, Any]]:
        return [{**row, **assumed} for row in answered(predictor.classes, probabilities, ood, rules)]

    def counted(row: Mapping[str, Any]) -> tuple[Sequence[str], bool]:
        return ((), True) if row["answer"] == NOT_SURE else ((row["answer"],), False)

    columns = ["predicted", "confidence", "answer", "why", *sets, *assumed]
    plan = _plan(predictor, wanted)
    return Answering(plan, columns, rows, counted, bool(_given(predictor)), _adapts(predictor))


def _plan(predictor: Predictor, wanted: Wanted) -> Abstention:
    return plan_abstention(predictor.trust, predictor.classes, wanted.tta, wanted.max_error, wanted.set_coverage)


def _given(predictor: Predictor) -> str:
    reweighting = predictor.trust.reweighting
    return "" if reweighting is None else reweighting.prior.cell()


def _adapts(predictor: Predictor) -> bool:
    return predictor.recipe.model.name != ENSEMBLE
