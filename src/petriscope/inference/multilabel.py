"""Image files that have any number of labels: for each label its probability, and whether it is present, absent or left open."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from petriscope.core.errors import RequestError
from petriscope.core.recipe import TTA
from petriscope.data.in_memory import AnyFile
from petriscope.inference.answers import Answering
from petriscope.inference.label_answers import ONE_CLASS, LabelPlan, answer_labels, answering_by, guarantees
from petriscope.inference.predictor import Predictor
from petriscope.inference.table import Rows, Wanted
from petriscope.models import ENSEMBLE
from petriscope.tasks.multilabel import HALF
from petriscope.trust.label_rules import ANSWERS


def plan_labels(predictor: Predictor, tta: TTA, max_error: float | None) -> LabelPlan:
    """The rules for a wanted error rate; without one, every label of an image that is in distribution is answered.

    Raises:
        RequestError: an error rate is wanted, and nothing was fitted on val for this test-time augmentation.
    """
    classes, reference = predictor.classes, predictor.trust.labels.get(tta)
    everything = np.full((len(classes), len(ANSWERS)), np.inf)
    if reference is None:
        if max_error is not None:
            raise RequestError(
                f"--max-error needs predictions on val for test-time augmentation {tta}, and the model file has "
                f"none; petriscope calibrate RUN --tta {tta} adds them"
            )
        return LabelPlan(classes, np.full(len(classes), HALF, np.float32), everything)
    if max_error is None:
        return LabelPlan(classes, reference.cutoffs, everything)
    limits = reference.limits(max_error)
    return LabelPlan(classes, reference.cutoffs, limits, guarantees(classes, limits, max_error))


def predict_files(predictor: Predictor, paths: Sequence[AnyFile], wanted: Wanted) -> Rows:
    """See `petriscope.inference.label_answers.answer_labels`.

    Raises:
        RequestError: as of `answering`.
    """
    return answer_labels(predictor, paths, wanted, answering(predictor, wanted))


def answering(predictor: Predictor, wanted: Wanted) -> Answering:
    """How images are answered whose probabilities are known, with the fields of `predict_files`.

    Raises:
        RequestError: prediction sets are asked for; or as of `plan_labels`.
    """
    if wanted.set_coverage is not None:
        raise RequestError(ONE_CLASS)
    adapts = predictor.recipe.model.name != ENSEMBLE
    return answering_by(predictor, plan_labels(predictor, wanted.tta, wanted.max_error), adapts)
