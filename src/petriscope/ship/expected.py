"""What a run answers at the error rates and coverages that a package offers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from petriscope.inference.package import Coverage, ErrorRate
from petriscope.inference.predictor import Predictor
from petriscope.metrics.conformal import METHOD, sets
from petriscope.metrics.selective import uncertainty
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


def answers(predictor: Predictor, images: np.ndarray) -> Outputs:
    """What `petriscope.inference.verification.compare_outputs` compares, of images, uint8 [N, H, W, C]."""
    parts = [_answers(predictor, images[rows]) for rows in _chunks(predictor, len(images))]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _answers(predictor: Predictor, images: np.ndarray) -> Outputs:
    if predictor.task.dense:
        p = predictor.probabilities(images)
        return {"classes": p.argmax(1).astype(np.uint8), "confidence": p.max(1)}
    found = predictor.predict(images)
    p, n = found.probabilities, len(images)
    reference = predictor.trust.references.get(predictor.recipe.evaluation.tta)
    label, doubt = p.argmax(1), uncertainty(p)
    given = np.full((n, len(MAX_ERRORS)), -1)
    members = np.ones((n, len(LEVELS), len(predictor.classes)), bool)
    if reference is not None:
        answered = [answered_by(reference.threshold(rate), doubt, found.ood) for rate in MAX_ERRORS]
        given = np.stack([np.where(each, label, -1) for each in answered], 1)
        limits = [reference.limits(level, len(predictor.classes), METHOD) for level in LEVELS]
        members = np.stack([sets(p, each, METHOD) for each in limits], 1)
    ood = np.zeros(n, np.float32) if found.ood is None else found.ood
    return {"probabilities": p, "label": label, "ood": ood, "answers": given, "sets": members}


def _chunks(predictor: Predictor, count: int) -> Iterator[slice]:
    size = predictor.recipe.evaluation.batch_size
    yield from (slice(start, start + size) for start in range(0, max(count, 1), size))
