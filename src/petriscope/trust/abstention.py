"""From probabilities to an answer, or to silence and the reason for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from petriscope.core.errors import RequestError
from petriscope.core.progress import say
from petriscope.inference.predictor import Answers, Predictor
from petriscope.inference.tta import TTA
from petriscope.metrics import conformal
from petriscope.metrics.selective import Threshold, doubt
from petriscope.trust.state import Reference

NOT_SURE = "not sure"
NO_CLASS = "(none)"


@dataclass(frozen=True)
class Answering:
    """When a predictor answers, and with what.

    Args:
        classes: names of the probabilities.
        max_error: the wanted error rate; None: all that are like the training images are answered.
        threshold: for it; None: it cannot be promised.
        limits: of conformal scores, [K]; None: no sets are wanted.
    """

    classes: tuple[str, ...]
    max_error: float | None = None
    threshold: Threshold | None = None
    limits: np.ndarray | None = None

    def words(self, answers: Answers) -> list[dict[str, str]]:
        """``answer``, ``why``, and ``set`` if wanted, for each image."""
        p, doubts = answers.probabilities, doubt(answers.probabilities)
        strange = np.zeros(len(p), bool) if answers.outlier is None else answers.outlier > 1
        members = None if self.limits is None else conformal.sets(p, self.limits, conformal.METHOD)
        rows = []
        for i in range(len(p)):
            why = "; ".join(self._reasons(float(doubts[i]), bool(strange[i])))
            row = {"answer": NOT_SURE if why else self.classes[int(p[i].argmax())], "why": why}
            if members is not None:
                names = [self.classes[k] for k in np.argsort(-p[i], kind="stable") if members[i, k]]
                row["set"] = "; ".join(names) or NO_CLASS
            rows.append(row)
        return rows

    def _reasons(self, doubtful: float, strange: bool) -> list[str]:
        reasons = ["unlike anything seen in training"] if strange else []
        if self.max_error is not None:
            if self.threshold is None:
                reasons.append(f"no confidence promises {100 * self.max_error:g} % errors")
            elif doubtful > self.threshold.doubt:
                reasons.append(f"confidence {_sure(doubtful)} is below {_sure(self.threshold.doubt)}")
        return reasons


def plan_answers(
    predictor: Predictor, tta: TTA | None, max_error: float | None, sets: float | None, quiet: bool
) -> Answering:
    """What the wanted error rate and coverage come to for this predictor.

    Raises:
        RequestError: they lie outside 0 and 1, or the model file holds no answers on val for these views.
    """
    for name, value in (("max_error", max_error), ("sets", sets)):
        if value is not None and not 0 < value < 1:
            raise RequestError(
                f"{name} lies between 0 and 1, such as {0.01 if name == 'max_error' else 0.95}; got {value:g}"
            )
    if max_error is None and sets is None:
        return Answering(predictor.classes)
    reference = _reference(predictor, tta or predictor.recipe.evaluation.tta)
    threshold = None if max_error is None else reference.threshold(max_error)
    limits = None if sets is None else reference.limits(sets, len(predictor.classes), conformal.METHOD)
    if not quiet:
        for sentence in _notes(predictor.classes, max_error, threshold, sets, limits, len(reference.doubt)):
            say(sentence)
    return Answering(predictor.classes, max_error, threshold, limits)


def _reference(predictor: Predictor, tta: TTA) -> Reference:
    found = predictor.trust.references.get(tta)
    if found is None:
        fitted = ", ".join(predictor.trust.references) or "nothing"
        raise RequestError(
            f"the model file holds no answers on val for tta {tta}, which max_error and sets stand on (it has {fitted}); "
            f"petriscope calibrate RUN --tta {tta} adds them to a run that has a val split"
        )
    return found


def _notes(
    classes: tuple[str, ...],
    max_error: float | None,
    threshold: Threshold | None,
    sets: float | None,
    limits: np.ndarray | None,
    images: int,
) -> list[str]:
    notes = []
    if max_error is not None and threshold is None:
        notes.append(
            f"no confidence promises {100 * max_error:g} % errors: the {images:,} images of val are too few or too often "
            "wrong. Nothing is answered; ask for less, or train with more images in val"
        )
    elif max_error is not None and threshold is not None:
        notes.append(
            f"answering from a confidence of {_sure(threshold.doubt)}: on val {threshold.wrong:,} of "
            f"{threshold.answered:,} such answers were wrong. With probability {100 * (1 - threshold.delta):g} % at most "
            f"{100 * max_error:g} % are on images like val's"
        )
    if limits is not None and sets is not None and np.isinf(limits).any():
        names = ", ".join(name for name, limit in zip(classes, limits, strict=True) if np.isinf(limit))
        notes.append(f"val has too few images of {names} for sets of {100 * sets:g} %: they are in every set")
    return notes


def _sure(doubtful: float) -> str:
    """A confidence with as many digits as tell it from certainty."""
    digits = 1 if doubtful <= 0 else max(1, math.floor(-math.log10(100 * doubtful)) + 1)
    return f"{100 * (1 - doubtful):.{min(digits, 12)}f} %"
