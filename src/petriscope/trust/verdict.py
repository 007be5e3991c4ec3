"""What a comparison with val says, in sentences for the terminal and for pages."""

from __future__ import annotations

from petriscope.core.errors import command
from petriscope.core.shift_results import Difference, ShiftTest

REMARKABLE = 0.5  # standard deviations from which a measure is named
NAMED = 3  # measures, at most
FAR = 20  # standard deviations, of which it does not matter how many
NOTHING = "Nothing is answered"
UNCLAIMED = (
    "Answers are given all the same, as requested; nothing is claimed about how many of them are wrong, or how often prediction "
    "sets contain the true class"
)
WOULD_BE = "Error rates and coverages are given as they would have come out; predict answers nothing"
WITHDRAWN = "guarantee withdrawn: these images are not like those that it was fitted on"


def remedy(model: str = "RUN", data: str = "NEW", adapts: bool = True) -> str:
    """The command that makes guarantees hold for images from elsewhere. Only runs that are no ensembles can be adapted: a model
    file alone has no images to rehearse."""
    return command("adapt" if adapts and not model.endswith(".safetensors") else "calibrate", model, "--data", data)


def verdict(
    test: ShiftTest,
    model: str = "RUN",
    data: str = "NEW",
    then: str = NOTHING,
    mix_given: bool = False,
    adapts: bool = True,
) -> list[str]:
    """What a test means for guarantees, the most important sentence first; empty if there is nothing to say.

    Args:
        model, data: as the command that closes the gap names them.
        then: what follows where guarantees are withdrawn, as a sentence.
        mix_given: the classes, or their shares, were given, and guarantees are for these.
        adapts: whether the model can be adapted, which an ensemble cannot.
    """
    if test.not_tested is not None:
        return [
            f"note: whether these images are like those the guarantees were fitted on was not tested: {test.not_tested}. Each "
            "image is judged by its out-of-distribution score alone"
        ]
    out = []
    if test.withdrawn:
        out = [
            f"GUARANTEES WITHDRAWN: these images are not like those the guarantees were fitted on: {differences(test)}. {then}",
            f"compared: {compared(test)}",
            f"to close the gap with labeled images from there: {remedy(model, data, adapts)}",
        ]
    if test.class_mix and not mix_given and not test.withdrawn:  # what is predicted of other images says little
        out.append(
            f"note: another mix of classes than val: {class_mix(test)}. This alone withdraws nothing; an error rate is "
            "guaranteed for the mix in val, and --prior says what another one is"
        )
    return out


def differences(test: ShiftTest) -> str:
    """What differs most, with figures."""
    named = [each for each in test.differs if abs(each.deviations) >= REMARKABLE][:NAMED]
    if named:
        return "; ".join(map(difference, named))
    seen = ", ".join(each.measure for each in test.differs)
    what = f"in nothing that is measured ({seen}) by much, but " if seen else ""
    return f"they differ {what}in {' and '.join(_significant(test)) or 'several small ways'}"


def difference(each: Difference) -> str:
    """One difference, such as ``stain 0.31 instead of 0.52 (2.1 standard deviations less)``."""
    reach = abs(each.deviations)
    apart = f"{reach:.1f}" if reach < FAR else f"over {FAR}"
    more = "" if len(each.here) > 1 else " more" if each.deviations > 0 else " less"  # a color is neither
    return f"{each.measure} {measured(each.here)} instead of {measured(each.val)} ({apart} standard deviations{more})"


def measured(values: list[float]) -> str:
    """The value of a measure: a color as its channels from 0 to 255, anything else with two digits."""
    if len(values) > 1 or abs(values[0]) >= 10:
        return "/".join(f"{value:.0f}" for value in values)
    return f"{values[0]:.2f}"


def compared(test: ShiftTest) -> str:
    """How many images were compared, and the result."""
    drawn = f"{test.n:,} images" if test.n == test.of else f"{test.n:,} of {test.of:,} images, drawn at random,"
    if test.copies:
        drawn += f" without {test.copies:,} {'copy' if test.copies == 1 else 'copies'} of them,"
    p = "" if test.p is None else f"p = {test.p:.4f}, and p up to {test.level:g} withdraws guarantees"
    *others, last = [name for name, part in _parts(test).items() if part is not None] or ["uncertainty"]
    return f"{drawn} with {test.val:,} of val in {' and '.join([', '.join(others), last] if others else [last])}; {p}"


def class_mix(test: ShiftTest) -> str:
    """The classes whose shares differ most."""
    return ", ".join(f"{100 * each.here:.0f} % {each.name} ({100 * each.val:.0f} % in val)" for each in test.class_mix)


def _significant(test: ShiftTest) -> list[str]:
    return [name for name, p in _parts(test).items() if p is not None and p <= test.level]


def _parts(test: ShiftTest) -> dict[str, float | None]:
    """The p-value by what was compared; None for what was not."""
    return {
        "features": test.p_features,
        "appearance": test.p_appearance,
        "out-of-distribution scores": test.p_ood,
        "uncertainty": test.p_uncertainty,
    }
