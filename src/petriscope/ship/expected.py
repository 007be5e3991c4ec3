"""What a run answers at the error rates and coverages that a package offers."""

from __future__ import annotations

import numpy as np

from petriscope.inference.label_answers import guarantees
from petriscope.inference.multilabel import plan_labels
from petriscope.inference.package import Coverage, ErrorRate
from petriscope.inference.predictor import Predictor
from petriscope.metrics.conformal import METHOD, sets
from petriscope.metrics.selective import DELTA, uncertainty
from petriscope.trust.label_rules import answered_labels
from petriscope.trust.plan import plan_abstention
from petriscope.trust.state import LEVELS, MAX_ERRORS, answered_by

Outputs = dict[str, np.ndarray]
UNFITTED = "nothing was fitted on val, so no error rate and no coverage is guaranteed"


def offers(predictor: Predictor) -> tuple[tuple[ErrorRate, ...], tuple[Coverage, ...], np.ndarray]:
    """The error rates and the coverages on offer, and the limits of prediction sets, float64 [L, K]. Masks have none. Where
    nothing was fitted on val, no threshold guarantees an error rate, and all classes are in all sets."""
    tta, classes = predictor.recipe.evaluation.tta, predictor.classes
    if predictor.task.dense:
        return (), (), np.empty((0, len(classes)))
    if not predictor.task.exclusive:
        return _label_offers(predictor)
    if tta not in predictor.trust.references:
        rates = tuple(ErrorRate(rate, None, 0, 0, 0.0, (UNFITTED,)) for rate in MAX_ERRORS)
        return (
            rates,
            tuple(Coverage(level, (UNFITTED,)) for level in LEVELS),
            np.full((len(LEVELS), len(classes)), np.inf),
        )
    found = []
    for rate in MAX_ERRORS:
        plan = plan_abstention(predictor.trust, classes, tta, rate, None)
        if (one := plan.threshold) is None:
            found.append(ErrorRate(rate, None, 0, 0, 0.0, plan.notes))
        else:
            found.append(ErrorRate(rate, one.uncertainty, one.answered, one.wrong, one.delta, plan.notes))
    plans = [plan_abstention(predictor.trust, classes, tta, None, level) for level in LEVELS]
    limits = np.stack([np.asarray(plan.limits, np.float64) for plan in plans])
    return tuple(found), tuple(Coverage(level, plan.notes) for level, plan in zip(LEVELS, plans, strict=True)), limits


def cutoffs_of(predictor: Predictor) -> np.ndarray:
    """The probability from which each label is present, float32 [K]."""
    return plan_labels(predictor, predictor.recipe.evaluation.tta, None).cutoffs


def _label_offers(predictor: Predictor) -> tuple[tuple[ErrorRate, ...], tuple[Coverage, ...], np.ndarray]:
    """The error rates on offer for several labels, and the limits of the doubts of their answers, float64 [E, K, 2]."""
    reference, classes = predictor.trust.labels.get(predictor.recipe.evaluation.tta), predictor.classes
    if reference is None:
        limits = np.full((len(MAX_ERRORS), len(classes), 2), -np.inf)
        return tuple(ErrorRate(rate, None, 0, 0, 0.0, (UNFITTED,)) for rate in MAX_ERRORS), (), limits
    limits = np.stack([*map(reference.limits, MAX_ERRORS)])
    rates = tuple(
        ErrorRate(rate, None, 0, 0, DELTA, guarantees(classes, each, rate))
        for rate, each in zip(MAX_ERRORS, limits, strict=True)
    )
    return rates, (), limits


class Answers:
    """What a predictor answers, as `petriscope.inference.verification.compare_outputs` compares it.

    Args:
        predictor: its thresholds and limits are computed once.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.reference = predictor.trust.references.get(predictor.recipe.evaluation.tta)
        if not predictor.task.exclusive:
            self.cutoffs, (*_, self.doubts) = cutoffs_of(predictor), offers(predictor)
        if self.reference is not None:
            classes = len(predictor.classes)
            self.thresholds = [self.reference.threshold(rate) for rate in MAX_ERRORS]
            self.limits = [self.reference.limits(level, classes, METHOD) for level in LEVELS]

    def of(self, images: np.ndarray) -> Outputs:
        """The outputs for images, uint8 [N, H, W, C]."""
        size = self.predictor.recipe.evaluation.batch_size
        parts = [self._of(images[start : start + size]) for start in range(0, max(len(images), 1), size)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _of(self, images: np.ndarray) -> Outputs:
        predictor = self.predictor
        if predictor.task.dense:
            p = predictor.probabilities(images)
            return {"classes": p.argmax(1).astype(np.uint8), "confidence": p.max(1)}
        found = predictor.predict(images)
        p, n = found.probabilities, len(images)
        ood = np.zeros(n, np.float32) if found.ood is None else found.ood
        if not predictor.task.exclusive:
            present = p >= self.cutoffs
            answered = [answered_labels(p, ood, self.cutoffs, each) for each in self.doubts]
            answers = np.stack([np.where(each, present, -1) for each in answered], 1)
            return {"probabilities": p, "labels": present, "ood": ood, "answers": answers.astype(np.int64)}
        label, doubt = p.argmax(1), uncertainty(p)
        given = np.full((n, len(MAX_ERRORS)), -1)
        members = np.ones((n, len(LEVELS), len(predictor.classes)), bool)
        if self.reference is not None:
            answered = [answered_by(each, doubt, found.ood) for each in self.thresholds]
            given = np.stack([np.where(each, label, -1) for each in answered], 1)
            members = np.stack([sets(p, each, METHOD) for each in self.limits], 1)
        return {"probabilities": p, "label": label, "ood": ood, "answers": given, "sets": members}
