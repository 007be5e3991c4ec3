"""A network on one family of disturbances, which its training may have left out: each corruption of the family alone, and
together with corruptions of other families."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from petriscope.augment.corruptions import SEVERITIES
from petriscope.augment.families import Family, family_of
from petriscope.core.errors import RequestError
from petriscope.core.results import LeftOut
from petriscope.data.imageset import ImageSet
from petriscope.trust.robustness import (
    AT_ONCE,
    PLAIN,
    TOGETHER,
    applicable,
    as_metric,
    predict_corrupted,
    predict_together,
    stratified,
)

PARTS = 4  # passes of two corruptions at once, and of three


def left_out_test(
    predict: Callable[[np.ndarray], np.ndarray],
    images: ImageSet,
    family: Family,
    *,
    count: int | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> LeftOut:
    """Disturb images by a family of corruptions, and evaluate the predictions.

    Alone means each corruption of the family at five severities, on the same disturbed images as in the stress test.
    Together means two or three corruptions at once, of which one is of the family and the others of other families; an
    image's corruptions are a function of the seed and its place in the set.

    Args:
        predict, images, count, seed, resamples: as of `petriscope.trust.robustness.stress_test`; ``count`` None: all.
        family: of the corruptions.

    Raises:
        RequestError: there are no images, no corruption of the family changes them, or the metric is undefined.
    """
    if not len(images) or (count is not None and count < 1):
        raise RequestError("a test of left-out disturbances needs at least one image")
    pool = applicable(images.channels)
    own = [corruption.name for corruption in pool if family_of(corruption.name) == family]
    if not own:
        raise RequestError(f"no corruption of the family {family} changes these images")
    order = stratified(images.strata, len(images) if count is None else count, seed)
    passes = [predict_corrupted(predict, images, order, PLAIN, 0, seed)]
    passes += [
        predict_corrupted(predict, images, order, name, severity, seed) for name in own for severity in SEVERITIES
    ]
    alone = range(1, len(passes))
    rows = {name: alone[k * len(SEVERITIES) : (k + 1) * len(SEVERITIES)] for k, name in enumerate(own)}
    for number, key in AT_ONCE.items():
        rows[key] = range(len(passes), len(passes) + PARTS)
        passes += [predict_together(predict, images, order, number, pool, family, seed, part) for part in range(PARTS)]
    together = range(alone.stop, len(passes))
    metrics = images.task.judge_passes(np.stack(passes), images.subset(order), resamples)
    if not np.isfinite(metrics.values[0]):
        raise RequestError(f"{metrics.name} is undefined on these images: nothing in them is labeled")
    rows |= {"clean": range(1), "alone": alone, TOGETHER: together}
    return LeftOut(
        family=family,
        metric_name=metrics.name,
        n=metrics.n,
        of=len(images),
        groups=metrics.groups,
        seed=seed,
        metrics={key: as_metric(metrics.mean(some)) for key, some in rows.items()},
    )
