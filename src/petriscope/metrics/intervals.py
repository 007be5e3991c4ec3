"""95 % intervals: Wilson's for a proportion, the bootstrap for everything else."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

Z95 = 1.959963984540054


def wilson(hits: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a proportion of ``hits`` in ``n``; (0, 1) for n = 0. Wilson, 1927, JASA 22:209.

    `scipy.stats.binomtest` is not used: it takes whole numbers of hits and no other quantile, and also computes an exact
    test, which makes it hundreds of times slower.
    """
    if n == 0:
        return 0.0, 1.0
    proportion = hits / n
    center = (proportion + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(proportion * (1 - proportion) / n + z * z / (4 * n * n))
    return max(0.0, center - reach), min(1.0, center + reach)


def bootstrap_weights(n: int, resamples: int, seed: int = 0, chunk_bytes: int = 2**26) -> Iterator[np.ndarray]:
    """How often each of ``n`` images is drawn in each bootstrap resample, float64 [r, n], in chunks of resamples. Efron,
    1979."""
    rng = np.random.default_rng(seed)
    rows = max(1, chunk_bytes // (8 * n))
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        draws = rng.integers(0, n, size=(count, n)) + np.arange(count)[:, None] * n
        yield np.bincount(draws.ravel(), minlength=count * n).reshape(count, n).astype(float)


def percentile95(values: np.ndarray) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of bootstrap values [R], without those that are not finite; NaN if none are left."""
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
