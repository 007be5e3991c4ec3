"""One image that is visible in many others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from petriscope.audit.base import Check, Context, Finding, FindingInfo

PLANTED = FindingInfo(
    "planted",
    "The same image is visible in many otherwise different images.",
    decision="drop",
    title="Planted images",
    grouped=True,
)


class PlantedImages(Check):
    findings = (PLANTED,)
    order = 10

    def run(self, context: Context) -> Iterator[Finding]:
        found = context.planted
        sizes = np.bincount(found.group[found.group >= 0])
        for index in np.flatnonzero(found.group >= 0).tolist():
            number, score = int(found.group[index]), float(found.score[index])
            name = f"planted-{number + 1}"
            yield PLANTED.of(
                index,
                f"the common image of {name} is visible in it with strength {score:.2f}",
                score,
                reason=f"one of {sizes[number]:,} images that show the same planted image",
                group=name,
            )
