"""Images that are unlike all others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from petriscope.audit.base import Check, Context, Finding, FindingInfo
from petriscope.audit.outliers import find_outliers

OUTLIER = FindingInfo(
    "outlier", "The image is unlike all other images of the set.", family="outliers", title="Outliers"
)


class OutlierImages(Check):
    findings = (OUTLIER,)
    order = 40

    def run(self, context: Context) -> Iterator[Finding]:
        if context.features is None:
            return
        found = find_outliers(context.features, context.images.strata)
        for index in np.flatnonzero(found.flagged).tolist():
            score = float(found.score[index])
            evidence = f"its distance to its nearest neighbors is {score:.1f} standard deviations above the median"
            yield OUTLIER.of(index, evidence, score, reason="unlike all other images")
