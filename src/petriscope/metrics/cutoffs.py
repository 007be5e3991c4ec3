"""Cutoffs between values: which values are accepted does not change, and none of them is at the edge.

A cutoff that is the value of one image accepts or rejects that image by a rounding error, such as that of another batch size
or of an exported network.
"""

from __future__ import annotations

import math

import numpy as np

REACH = 0.02  # a next value that is further away, relative to the cutoff, counts as if it were that far away
SMALLEST = 1e-6  # cutoffs nearer to 0 have the same reach as this one


def between(values: np.ndarray, cutoff: float, ceiling: float = math.inf) -> float:
    """The middle between the largest value that is at most ``cutoff`` and the next larger one.

    The middle is arithmetic, also for values that span powers of ten. If rounding errors are relative, then what matters is
    the relative margin to the larger value. That is half of the relative gap, as on a logarithmic scale if the gap is small,
    and at least 25 % if one value is at least twice the other.

    Args:
        values: float [N], finite or infinite.
        cutoff: values up to it are accepted.
        ceiling: counts as one more value that is not accepted. Infinite: none.

    Returns:
        a number of the precision of ``values``, so that comparisons in that precision are exact. It is ``cutoff`` if no value
        is accepted, none is rejected, or there is no number between the two.
    """
    low = float(values[values <= cutoff].max(initial=-math.inf))
    high = min(float(values[values > cutoff].min(initial=math.inf)), ceiling)
    if not -math.inf < low < high < math.inf:
        return cutoff
    with np.errstate(over="ignore"):
        middle = float(values.dtype.type(low + (high - low) / 2))
    return middle if middle < high else cutoff


def raised(values: np.ndarray, cutoff: float, bound: float = math.inf) -> float:
    """A ``cutoff`` that is one of the values, raised to the middle between it and the next, but by at most half of `REACH`.

    Without that limit, a cutoff in the tail would accept much of what is between the tail and a single outlier.

    Args:
        values: float [N].
        cutoff: values up to it are accepted.
        bound: the largest possible value; the cutoff stays below it.
    """
    return max(cutoff, between(values, cutoff, min(bound, cutoff + REACH * max(abs(cutoff), SMALLEST))))
