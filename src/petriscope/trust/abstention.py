"""Selective prediction: an answer for each image, or an abstention and its reasons."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from petriscope.metrics import conformal
from petriscope.metrics.selective import Threshold, uncertainty
from petriscope.trust.verdict import WITHDRAWN

NOT_SURE = "not sure"
FAR = "out of distribution: not like the images that the model was trained on"
UNCLAIMED = "without guarantee: these images are not like those that it was fitted on"
NO_CLASS = "(none)"


@dataclass(frozen=True)
class Abstention:
    """The rules by which a model answers or abstains, and by which prediction sets are made.

    Args:
        classes: K names.
        max_error: the largest error rate wanted among answers; None: every image that is in distribution is answered.
        threshold: the threshold that guarantees ``max_error``; None: val does not support one.
        limits: conformal scores up to which a class is in the prediction set, float64 [K]; None: no prediction sets.
        notes: what the thresholds guarantee, a sentence each.
        withdrawn: the guarantees do not hold for these images, so nothing is answered, and all classes that may occur are in all
            sets.
        unclaimed: the guarantees do not hold, and images are answered all the same.
    """

    classes: tuple[str, ...]
    max_error: float | None = None
    threshold: Threshold | None = None
    limits: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    withdrawn: bool = False
    unclaimed: bool = False

    def without_guarantee(self, answer: bool) -> Abstention:
        """The rules for images that guarantees do not hold for: abstain, or answer all the same."""
        if answer:
            return replace(self, notes=(), unclaimed=True)
        # Classes that are known not to occur stay out of all sets.
        limits = None if self.limits is None else np.where(self.limits == -np.inf, -np.inf, np.inf)
        return replace(self, notes=(), limits=limits, withdrawn=True)

    def rows(self, probabilities: np.ndarray, ood: np.ndarray | None) -> list[dict[str, str]]:
        """One row per image: ``answer``, ``why`` (empty for an answer, unless nothing is claimed), and ``set`` if
        there are ``limits``.

        Args:
            probabilities: scaled with the temperature fitted on val, float32 [N, K].
            ood: out-of-distribution scores, float32 [N]; above 1, the model abstains. None: there is no detector.
        """
        p, uncertainties = probabilities, uncertainty(probabilities).tolist()
        far = [False] * len(p) if ood is None else (~(ood <= 1)).tolist()
        first = p.argmax(1).tolist()
        members = None if self.limits is None else conformal.sets(p, self.limits, conformal.METHOD)
        rows = []
        for i in range(len(p)):
            reasons = self._reasons(uncertainties[i], far[i])
            answer = NOT_SURE if reasons else self.classes[first[i]]
            row = {"answer": answer, "why": "; ".join([*reasons, *([UNCLAIMED] if self.unclaimed else [])])}
            if members is not None:
                names = [self.classes[k] for k in np.argsort(-p[i], kind="stable") if members[i, k]]
                row["set"] = "; ".join(names) or NO_CLASS
            rows.append(row)
        return rows

    def _reasons(self, uncertainty: float, far: bool) -> list[str]:
        reasons = [WITHDRAWN] if self.withdrawn else []
        reasons += [FAR] if far else []
        if self.max_error is not None:
            if self.threshold is None:
                reasons.append(f"no confidence guarantees at most {100 * self.max_error:g} % errors")
            elif uncertainty > self.threshold.uncertainty:
                reasons.append(
                    f"confidence {confidence_text(uncertainty)} is below {confidence_text(self.threshold.uncertainty)}"
                )
        return reasons


def confidence_text(uncertainty: float) -> str:
    """A confidence in percent, with enough digits to differ from 100 %."""
    digits = 1 if uncertainty <= 0 else max(1, math.floor(-math.log10(100 * uncertainty)) + 1)
    return f"{100 * (1 - uncertainty):.{min(digits, 12)}f} %"
