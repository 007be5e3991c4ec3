"""Images of poor quality: each measured value is compared with what is usual in the set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from petriscope.audit.base import Check, Context, Finding, FindingInfo
from petriscope.audit.quality import Quality, measure_quality
from petriscope.data.decisions import Verdict


def _info(name: str, about: str, decision: Verdict = "review", higher_is_worse: bool = False) -> FindingInfo:
    return FindingInfo(name, about, "quality", decision, higher_is_worse=higher_is_worse)


MEASURED = {  # finding -> name of the measured value, and the evidence
    _info("blank", "The image shows nothing.", "drop"): (
        "contrast",
        "its contrast is {value:.3f} on a scale of 0 to 1; the median is {usual:.2f}",
    ),
    _info("dark", "The image is much darker than the others."): (
        "highlights",
        "its brightest parts have a brightness of {value:.2f} on a scale of 0 to 1; the median is {usual:.2f}",
    ),
    _info("bright", "The image is much brighter than the others and overexposed.", higher_is_worse=True): (
        "clipped",
        "{value:.0%} of its pixels are white; the median is {usual:.0%}",
    ),
    _info("low_contrast", "The image has much less contrast than the others."): (
        "contrast",
        "its contrast is {value:.2f} on a scale of 0 to 1; the median is {usual:.2f}",
    ),
    _info("blurred", "The image is much less sharp than the others."): (
        "sharpness",
        "its sharpness is {value:.2f}; the median is {usual:.2f}",
    ),
    _info("gray_among_color", "The image is gray, but the others are in color."): (
        "saturation",
        "its saturation is {value:.3f} on a scale of 0 to 1; the median is {usual:.2f}",
    ),
}


class PoorQuality(Check):
    findings = tuple(MEASURED)
    order = 50
    misleading = True

    def run(self, context: Context) -> Iterator[Finding]:
        yield from findings_of_quality(measure_quality(context.images, quiet=context.quiet))


def findings_of_quality(found: Quality) -> Iterator[Finding]:
    """About a blank image nothing else is reported."""
    for info, (measured, evidence) in MEASURED.items():
        values = found.values[measured]
        usual = float(np.median(values)) if len(values) else 0.0
        for index in np.flatnonzero(found.flags[info.name] & (~found.flags["blank"] | (info.name == "blank"))).tolist():
            value = float(values[index])
            yield info.of(index, evidence.format(value=value, usual=usual), value)
