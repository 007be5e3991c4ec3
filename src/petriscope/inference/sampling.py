"""Images drawn at random, where not all are needed."""

from __future__ import annotations

import numpy as np


def sample_rows(count: int, most: int) -> np.ndarray:
    """At most so many of ``count`` rows, drawn at random but always the same, in order, int64."""
    rows = np.arange(count)
    return rows if count <= most else np.sort(np.random.default_rng(0).permutation(count)[:most])
