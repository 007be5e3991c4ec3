"""The rules of abstention for a wanted error rate and coverage, from what was fitted on val."""

from __future__ import annotations

import numpy as np

from petriscope.core.errors import RequestError
from petriscope.core.recipe import TTA
from petriscope.metrics import conformal
from petriscope.metrics.selective import Threshold, fewest_groups
from petriscope.trust.abstention import Abstention, confidence_text
from petriscope.trust.state import Reference, Trust


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
    if threshold is not None:
        absent = np.bincount(reference.target, minlength=len(classes)) == 0
        if reference.occurs is not None:
            absent &= reference.occurs
        if lacking := [name for name, there in zip(classes, absent, strict=True) if there]:
            notes.append(f"val has no image of {', '.join(lacking)}, so no guarantee holds for images of it")
    if max_error is not None and threshold is None:
        notes.append(
            f"no confidence guarantees at most {100 * max_error:g} % errors: {_too_few(reference, max_error)}. Nothing is "
            "answered; allow more errors, or train with a larger val split"
        )
    elif max_error is not None and threshold is not None:
        # The probability of the most likely class is never below 1 / K.
        any_will_do = 1 - threshold.uncertainty <= 1 / len(classes)
        needed = "no minimum confidence" if any_will_do else f"a confidence of {confidence_text(threshold.uncertainty)}"
        notes.append(
            f"answers need {needed}: {_sample(reference)}, "
            f"{threshold.wrong:,} of {threshold.answered:,} such answers were wrong. {_population(reference)}, at most "
            f"{100 * max_error:g} % are wrong, with probability {100 * (1 - threshold.delta):g} %"
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
