"""Selective prediction: an answer for each image, or an abstention and its reasons."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from petriscope.core.errors import RequestError
from petriscope.core.recipe import TTA
from petriscope.metrics import conformal
from petriscope.metrics.selective import Threshold, fewest_groups, uncertainty
from petriscope.trust.state import Reference, Trust
from petriscope.trust.verdict import WITHDRAWN

NOT_SURE = "not sure"
UNCLAIMED = "answered without guarantee: these images are not like those that it was fitted on"
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
        """One row per image: ``answer``, ``why`` (empty for an answer, unless nothing is claimed about it), and ``set`` if
        there are ``limits``.

        Args:
            probabilities: scaled with the temperature fitted on val, float32 [N, K].
            ood: out-of-distribution scores, float32 [N]; above 1, the model abstains. None: there is no detector.
        """
        p, uncertainties = probabilities, uncertainty(probabilities)
        far = np.zeros(len(p), bool) if ood is None else ~(ood <= 1)
        members = None if self.limits is None else conformal.sets(p, self.limits, conformal.METHOD)
        rows = []
        for i in range(len(p)):
            why = "; ".join(self._reasons(float(uncertainties[i]), bool(far[i])))
            answer = NOT_SURE if why else self.classes[int(p[i].argmax())]
            row = {"answer": answer, "why": why or (UNCLAIMED if self.unclaimed else "")}
            if members is not None:
                names = [self.classes[k] for k in np.argsort(-p[i], kind="stable") if members[i, k]]
                row["set"] = "; ".join(names) or NO_CLASS
            rows.append(row)
        return rows

    def _reasons(self, uncertainty: float, far: bool) -> list[str]:
        reasons = [WITHDRAWN] if self.withdrawn else []
        reasons += ["out of distribution: not like the images that the model was trained on"] if far else []
        if self.max_error is not None:
            if self.threshold is None:
                reasons.append(f"no confidence guarantees at most {100 * self.max_error:g} % errors")
            elif uncertainty > self.threshold.uncertainty:
                reasons.append(
                    f"confidence {_confidence(uncertainty)} is below {_confidence(self.threshold.uncertainty)}"
                )
        return reasons


def plan_abstention(
    trust: Trust,
    classes: tuple[str, ...],
    tta: TTA,
    max_error: float | None,
    set_coverage: float | None,
) -> Abstention:
    """The thresholds for a wanted error rate and for a wanted coverage of prediction sets.

    Args:
        trust: what was fitted on val.
        classes: K names.
        tta: test-time augmentation of the predictions.
        max_error: the largest error rate wanted among answers, above 0 and below 1; None: no limit.
        set_coverage: the wanted coverage of prediction sets, above 0 and below 1; None: no prediction sets.

    Raises:
        RequestError: a value is out of range, or nothing was fitted for this test-time augmentation.
    """
    for name, value, example in (("max_error", max_error, 0.01), ("set_coverage", set_coverage, 0.95)):
        if value is not None and not 0 < value < 1:
            raise RequestError(f"{name} must be between 0 and 1, such as {example}; got {value:g}")
    if max_error is None and set_coverage is None:
        return Abstention(classes)
    reference = trust.references.get(tta)
    if reference is None and trust.reweighting is not None and tta in trust.reweighting.plain.references:
        lack = trust.reweighting.plain.references[tta].lacks(len(classes))
        raise RequestError(f"thresholds and prediction sets for the classes that occur: {lack}")
    if reference is None:
        fitted = ", ".join(f"--tta {each}" for each in trust.references)
        has = f"it has those for {fitted}" if fitted else "it has none"
        raise RequestError(
            f"the model file has no predictions on val for test-time augmentation {tta}, from which thresholds and "
            f"prediction sets are computed ({has}); petriscope calibrate RUN --tta {tta} adds them to a run that has a val split"
        )
    threshold = None if max_error is None else reference.threshold(max_error)
    limits = None if set_coverage is None else reference.limits(set_coverage, len(classes), conformal.METHOD)
    notes = _notes(classes, max_error, threshold, set_coverage, limits, reference)
    return Abstention(classes, max_error, threshold, limits, tuple(notes))


def _notes(
    classes: tuple[str, ...],
    max_error: float | None,
    threshold: Threshold | None,
    set_coverage: float | None,
    limits: np.ndarray | None,
    reference: Reference,
) -> list[str]:
    notes = []
    if reference.occurs is not None and threshold is not None:
        absent = reference.occurs & (np.bincount(reference.target, minlength=len(classes)) == 0)
        if lacking := [name for name, there in zip(classes, absent, strict=True) if there]:
            notes.append(f"val has no image of {', '.join(lacking)}, so no guarantee holds for images of it")
    if max_error is not None and threshold is None:
        notes.append(
            f"no confidence guarantees at most {100 * max_error:g} % errors: {_too_few(reference, max_error)}. Nothing is "
            "answered; allow more errors, or train with a larger val split"
        )
    elif max_error is not None and threshold is not None:
        notes.append(
            f"answers need a confidence of {_confidence(threshold.uncertainty)}: {_sample(reference)}, {threshold.wrong:,} of "
            f"{threshold.answered:,} such answers were wrong. {_population(reference)}, at most {100 * max_error:g} % "
            f"are wrong, with probability {100 * (1 - threshold.delta):g} %"
        )
    if limits is not None and set_coverage is not None and (limits == np.inf).any():
        names = ", ".join(name for name, limit in zip(classes, limits, strict=True) if limit == np.inf)
        notes.append(
            f"val has too few {'images' if reference.groups is None else 'groups'} of {names} for a coverage of "
            f"{100 * set_coverage:g} %; every prediction set contains {names}"
        )
    return notes


def _too_few(reference: Reference, max_error: float) -> str:
    """Why val supports no threshold."""
    n, which = reference.size, _which(reference)
    if reference.groups is None:
        return f"the {n:,} images of val{which} are too few, or too many of them are misclassified"
    needed = fewest_groups(max_error)
    if n < needed:
        return (
            f"{n:,} group{'' if n == 1 else 's'} of images{which} in val, and images of one group are "
            f"not independent: an error rate of {100 * max_error:g} % cannot be guaranteed from fewer than {needed:,} groups"
        )
    return f"too many images of the {n:,} groups of val{which} are misclassified"


def _population(reference: Reference) -> str:
    """What a guarantee is about."""
    if reference.groups is None:
        return f"On images{_which(reference)} like those of val"
    return f"On images{_which(reference)} of new groups like the {reference.groups:,} of val"


def _sample(reference: Reference) -> str:
    """What a threshold was tested on. One that is a median over draws is counted on all images."""
    if reference.weights is None or reference.groups is not None:
        return f"on val{'' if reference.occurs is None else ', images of these classes'}"
    return f"on about {reference.size:,} images drawn from val{_which(reference)}"


def _which(reference: Reference) -> str:
    if reference.weights is not None:
        return " with these class shares"
    return "" if reference.occurs is None else " of these classes"


def _confidence(uncertainty: float) -> str:
    """A confidence in percent, with enough digits to differ from 100 %."""
    digits = 1 if uncertainty <= 0 else max(1, math.floor(-math.log10(100 * uncertainty)) + 1)
    return f"{100 * (1 - uncertainty):.{min(digits, 12)}f} %"
