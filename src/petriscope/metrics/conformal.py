"""Sets of classes that hold the true one as often as wanted, whatever the model.

A score says how badly a class fits an image. If val and new images are drawn alike, the true class of a new one fits no
worse than a quantile of val's scores with the wanted probability: Vovk et al., 2005; the sets are all classes that fit so
well. The methods differ in the score:

- ``lac``: 1 - probability; the smallest sets on average. Sadinle et al., 2019, arXiv:1609.00451.
- ``class``: the same with a quantile for each class, so that every class is covered as often as wanted (Mondrian).
- ``aps``: the probability of all likelier classes; larger sets where an image is harder. Romano et al., 2020,
  arXiv:2006.02544.
- ``raps``: with a penalty on unlikely classes, for smaller sets. Angelopoulos et al., 2021, arXiv:2009.14193.

Coverage is what was promised over draws of val and of new images. A set may be empty: no class fits.
"""

from __future__ import annotations

import hashlib
import math
from typing import Literal, get_args

import numpy as np

from petriscope.metrics.selective import doubt

Method = Literal["lac", "class", "aps", "raps"]
METHODS: tuple[Method, ...] = get_args(Method)
METHOD: Method = "class"  # of the sets that are predicted: every class is held as often as wanted, the rare ones too
RAPS_FREE, RAPS_PENALTY = 1, 0.1  # classes that go without a penalty, and the penalty of each one after


def scores(probabilities: np.ndarray, method: Method) -> np.ndarray:
    """How badly each class fits each image, float32 [N, K], of probabilities float [N, K].

    APS and RAPS count a random part of the class's own probability, without which they cover too much. Here the draw is a
    hash of the image's probabilities: the same answer has the same set, and the order of the images does not matter.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if method in ("lac", "class"):
        out = 1 - p
        out[np.arange(len(p)), p.argmax(1)] = doubt(p)
        return out.astype(np.float32)
    order = np.argsort(-p, axis=1, kind="stable")
    ordered = np.take_along_axis(p, order, 1)
    out = np.cumsum(ordered, 1) - ordered + _uniform(probabilities)[:, None] * ordered
    if method == "raps":
        ranks = np.arange(1, p.shape[1] + 1)
        out = out + RAPS_PENALTY * np.maximum(ranks - RAPS_FREE, 0)
    unsorted = np.empty_like(out)
    np.put_along_axis(unsorted, order, out, 1)
    return unsorted.astype(np.float32)


def _uniform(probabilities: np.ndarray) -> np.ndarray:
    """A number in [0, 1) a row, a function of the row alone, [N]."""
    rows = np.ascontiguousarray(np.asarray(probabilities, dtype=np.float32))
    digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows]
    return np.array([int.from_bytes(digest, "little") / 2**64 for digest in digests])


def quantile(values: np.ndarray, level: float) -> float:
    """The smallest value that covers a new one with probability ``level``: of N values, the ceil((N + 1) level)-th.

    Infinite where N is too small to promise it.
    """
    rank = math.ceil(round((len(values) + 1) * level, 9))
    return float(np.partition(values, rank - 1)[rank - 1]) if 0 < rank <= len(values) else math.inf


def quantiles(true_scores: np.ndarray, targets: np.ndarray, classes: int, level: float, method: Method) -> np.ndarray:
    """The largest score that is taken into a set, a class, float64 [K].

    Args:
        true_scores: of the true classes of val, [N].
        targets: int64 [N].
        level: wanted coverage, above 0, below 1.
    """
    if not 0 < level < 1:
        raise ValueError("a level of coverage lies between 0 and 1")
    if method == "class":
        return np.array([quantile(true_scores[targets == k], level) for k in range(classes)])
    return np.full(classes, quantile(true_scores, level))


def sets(probabilities: np.ndarray, limits: np.ndarray, method: Method) -> np.ndarray:
    """Which classes are in the set of each image, bool [N, K]; ``limits`` as `quantiles` gives them."""
    return scores(probabilities, method) <= limits
