"""Classification of image files: answers, abstentions and prediction sets, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from petriscope.data.in_memory import AnyFile
from petriscope.inference.answers import answer_files
from petriscope.inference.predictor import Predictor
from petriscope.inference.table import Rows, Wanted
from petriscope.models import ENSEMBLE
from petriscope.trust.plan import plan_abstention


def predict_files(predictor: Predictor, paths: Sequence[AnyFile], wanted: Wanted) -> Rows:
    """See `petriscope.inference.answers.answer_files`."""
    trust = predictor.trust
    plan = plan_abstention(trust, predictor.classes, wanted.tta, wanted.max_error, wanted.set_coverage)
    given = "" if trust.reweighting is None else trust.reweighting.prior.cell()
    return answer_files(predictor, paths, wanted, plan, given, predictor.recipe.model.name != ENSEMBLE)
