"""Conformal prediction sets: sets of classes that contain the true class with a wanted coverage, for any model.

A nonconformity score measures how badly a class fits an image. If the images of val and new images are exchangeable, the
score of a new image's true class is at most a quantile of the scores on val, with the wanted probability (Vovk et al.,
2005). The prediction set holds all classes whose score is at most that quantile. The methods differ in the score:

- ``lac``: 1 - probability; the smallest sets on average. Sadinle et al., 2019, arXiv:1609.00451.
- ``class``: the same score with one quantile per class, so that every class has the wanted coverage (Mondrian).
- ``aps``: the total probability of all more likely classes; sets are larger for harder images. Romano et al., 2020,
  arXiv:2006.02544.
- ``raps``: aps with a penalty on unlikely classes, for smaller sets. Angelopoulos et al., 2021, arXiv:2009.14193.

Coverage is marginal: it holds on average over draws of val and of new images. A set may be empty.

Images of one group, such as the cells of one slide, are not exchangeable with those of a new group, but groups are
exchangeable with groups. Where val has groups, every group has the same weight in the quantile, shared among its images, and
a new group has the same weight at infinity. The coverage then holds for an image of a new group (Lee, Barber and Willett,
2023, arXiv:2306.06342; Dunn, Wasserman and Ramdas, 2022, arXiv:1809.07441).

Where the shares of the classes are others than on val, images weigh in proportion to new share / share on val of their class
(Podkopaev and Ramdas, 2021, arXiv:2103.03323). The method ``class`` needs no weights.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np

from petriscope.metrics.blocks import row_blocks
from petriscope.metrics.cutoffs import raised
from petriscope.metrics.selective import uncertainty

Method = Literal["lac", "class", "aps", "raps"]
METHODS: tuple[Method, ...] = get_args(Method)
METHOD: Method = "class"  # used for predictions: rare classes have the wanted coverage too
RAPS_FREE, RAPS_PENALTY = 1, 0.1  # number of classes without a penalty, and the penalty per further class
WAVES = 10  # half waves of APS's random share while the odds of the two most probable classes grow e-fold


def scores(probabilities: np.ndarray, method: Method) -> np.ndarray:
    """Nonconformity score of every class for every image, float32 [N, K]; higher means a worse fit.

    APS and RAPS add a random share of the class's own probability, without which their sets are too large. Here the share is
    a function of the image's probabilities, so that equal probabilities give equal sets and the order of the images does not
    matter. It is continuous, so that rounding, as between batches of different sizes, does not draw another share.

    Args:
        probabilities: float [N, K].
    """
    out = np.empty(probabilities.shape, dtype=np.float32)
    for rows in row_blocks(len(out), 8 * probabilities.shape[1]):
        out[rows] = _scores(probabilities[rows], method)
    return out


def true_scores(probabilities: np.ndarray, targets: np.ndarray, method: Method) -> np.ndarray:
    """The score of the true class of every image, float32 [N].

    Args:
        targets: int64 [N].
    """
    out = np.empty(len(targets), dtype=np.float32)
    for rows in row_blocks(len(out), 8 * probabilities.shape[1]):
        found = _scores(probabilities[rows], method)
        out[rows] = found[np.arange(len(found)), targets[rows]]
    return out


def _scores(probabilities: np.ndarray, method: Method) -> np.ndarray:
    p = np.asarray(probabilities, dtype=np.float64)
    if method in ("lac", "class"):
        out = 1 - p
        out[np.arange(len(p)), p.argmax(1)] = uncertainty(p)
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
    """One number in [0, 1] per row, float64 [N]; it depends on the row alone.

    It is a triangle wave of the logarithm of the odds between the two most probable classes. The wave is short against how
    much these odds differ between images, so the numbers are spread evenly, and long against errors of rounding.
    """
    highest = np.partition(np.asarray(probabilities, dtype=np.float64), -2, axis=1)[:, -2:]
    odds = np.diff(np.log(np.maximum(highest, np.finfo(np.float32).tiny)), axis=1)[:, 0]
    return np.abs(WAVES * odds % 2 - 1)


def quantile(
    values: np.ndarray,
    level: float,
    index: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    new: float = 1.0,
) -> float:
    """The smallest of N values that a new value does not exceed with probability ``level``: the ceil((N + 1) level)-th.

    With G groups, values weigh 1 / (images of their group), and their weights have to reach (G + 1) level. Infinite if
    there are too few values, or groups, to guarantee it.

    Args:
        index: groups of the values, int64 [N]; None: values are exchangeable.
        weights: how likely each value is where the new one comes from, relative to here, float [N]; ``new``: the same for
            the new value. None: all the same.
    """
    if len(values) and (index is not None or weights is not None):
        each = np.ones(len(values)) if weights is None else weights
        if index is not None:
            _, index, sizes = np.unique(index, return_inverse=True, return_counts=True)
            each = each / sizes[index]
        order = np.argsort(values, kind="stable")
        rank = int(np.searchsorted(np.cumsum(each[order]), (each.sum() + new) * level - 1e-9))
        return float(values[order[rank]]) if rank < len(values) else math.inf
    rank = math.ceil(round((len(values) + 1) * level, 9))
    return float(np.partition(values, rank - 1)[rank - 1]) if 0 < rank <= len(values) else math.inf


def quantiles(
    true_scores: np.ndarray,
    targets: np.ndarray,
    classes: int,
    level: float,
    method: Method,
    index: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """The highest score that a prediction set includes, per class, float64 [K].

    It is the `quantile`, `raised` towards the next score on val. A higher limit never has a lower coverage.

    Args:
        true_scores: scores of the true classes on val, float [N].
        targets: int64 [N].
        classes: K.
        level: wanted coverage, above 0 and below 1.
        index: groups of the images, int64 [N], as `petriscope.metrics.intervals.group_index` has them; None: images are
            exchangeable.
        weights: share of each class among new images, relative to its share on val, float64 [K]; None: the same shares.

    Raises:
        ValueError: ``level`` is out of range.
    """
    if not 0 < level < 1:
        raise ValueError(f"the coverage must be between 0 and 1, not {level}")
    bound = math.inf if method == "raps" else 1.0
    if method == "class":
        members = [targets == k for k in range(classes)]
        found = [quantile(true_scores[m], level, None if index is None else index[m]) for m in members]
        return np.array([raised(true_scores[m], limit, bound) for m, limit in zip(members, found, strict=True)])
    if weights is not None:
        each = weights[targets]
        found = [quantile(true_scores, level, index, each, float(own)) for own in weights]
        return np.array([raised(true_scores, limit, bound) for limit in found])
    return np.full(classes, raised(true_scores, quantile(true_scores, level, index), bound))


def sets(probabilities: np.ndarray, limits: np.ndarray, method: Method) -> np.ndarray:
    """Which classes are in the prediction set of each image, bool [N, K].

    Args:
        probabilities: float [N, K].
        limits: float64 [K], from `quantiles`.
    """
    out = np.empty(probabilities.shape, dtype=bool)
    for rows in row_blocks(len(out), 8 * probabilities.shape[1]):
        out[rows] = _scores(probabilities[rows], method) <= limits
    return out
