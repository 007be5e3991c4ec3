"""Selective prediction: answer only images that the model is confident about, so that a wanted error rate holds.

The coverage is the share of images that are answered, the risk the error rate among them. El-Yaniv and Wiener, 2010, "On
the Foundations of Noise-free Selective Classification", JMLR 11:1605.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from petriscope.metrics.blocks import row_blocks
from petriscope.metrics.cutoffs import between

DELTA = 0.05  # probability that the guarantee fails, over draws of val
STARTS = (0.5, 0.7, 0.9, 1.0)  # coverages that start with a share of DELTA
LAST = 2  # if only so many starts are left, a single start is used instead
STEP = 0.01  # between the coverages that are tested
MOST_GROUPS = 1e15  # that a message names, for error rates near 0
DRAWS = 101  # of one image per group; odd


def uncertainty(probabilities: np.ndarray) -> np.ndarray:
    """1 - confidence, float32 [N], of probabilities, float [N, K].

    It is the sum of all probabilities but the largest. Subtraction would give 0 wherever the confidence is 1 in float32.
    """
    out = np.empty(len(probabilities), dtype=np.float32)
    for rows in row_blocks(len(out), 8 * probabilities.shape[1]):
        rest = np.array(probabilities[rows], dtype=np.float64)
        rest[np.arange(len(rest)), rest.argmax(1)] = 0
        out[rows] = rest.sum(1)
    return out


@dataclass(frozen=True)
class Threshold:
    """A rule for abstention: answer images whose uncertainty is at most ``uncertainty``.

    Args:
        max_error: the guaranteed error rate.
        answered, wrong: numbers of the images it was fitted on.
        delta: upper bound of the probability that the guarantee fails.
    """

    max_error: float
    uncertainty: float
    answered: int
    wrong: int
    delta: float

    @property
    def confidence(self) -> float:
        return 1 - self.uncertainty


def guaranteed_threshold(
    uncertainties: np.ndarray,
    right: np.ndarray,
    max_error: float,
    delta: float = DELTA,
    index: np.ndarray | None = None,
    accept: np.ndarray | None = None,
) -> Threshold | None:
    """The threshold with the highest coverage such that, with probability ``1 - delta``, the error rate among answered
    images is at most ``max_error``.

    Learn then test: Angelopoulos et al., 2021, arXiv:2110.01052. The thresholds tested answer half of the images, then 1 %
    more, and so on. Each is tested with the binomial tail probability of the errors among the answered images. Wiens's
    fallback procedure (2003, Pharmaceutical Statistics 2:211) passes the significance level on while tests succeed, and
    adds a share of it at later starts, where more images give the test more power. What is tested is to answer all that is
    below the uncertainty of one image; given it, the images below it are independent draws (Geifman and El-Yaniv, 2017,
    arXiv:1705.08500). The threshold returned is lower: the middle between that image and the one before it.

    The guarantee holds for any number of images if new images are drawn from the same distribution, and if a lower
    threshold never raises the error rate.

    With groups, it holds for images of new groups, each of which counts the same. Images of one group are not independent,
    so one image of each group is drawn, `DRAWS` times (Dunn, Wasserman and Ramdas, 2022, arXiv:1809.07441). Each draw gives
    a threshold as above, at ``delta / 2``; the result is their median. It breaks the guarantee only if at least half of them
    do, which by Markov's inequality is at most twice as likely as that one does.

    Where the new images have other shares of the classes, ``accept`` makes the images a sample of those (rejection sampling).
    With groups, the one image of each group is accepted or not, because it is the mix over groups that has to be right.

    Args:
        uncertainties: float [N], of images that were not used in training.
        right: whether each prediction is right, bool [N].
        max_error, delta: above 0 and below 1.
        index: groups of the images, int64 [N], as `petriscope.metrics.intervals.group_index` has them; None: images are
            independent.
        accept: the probability with which each image is used, float [N], 0 to 1; None: all are.

    Returns:
        None if these images, or their groups, are too few, or too many predictions wrong, for any threshold.

    Raises:
        ValueError: ``max_error`` or ``delta`` is out of range.
    """
    if not 0 < max_error < 1 or not 0 < delta < 1:
        raise ValueError(f"max_error and delta must be between 0 and 1, not {max_error} and {delta}")
    # Lowering a threshold to the middle keeps the guarantee, which assumes that a lower threshold never raises the error
    # rate. The middle is between images of all that are given, also of those that were not drawn.
    every = uncertainties
    if index is None:
        if accept is not None:
            rows = np.flatnonzero(np.random.default_rng(0).random(len(accept)) < accept)
            uncertainties, right = uncertainties[rows], right[rows]
        one = _threshold(uncertainties, right, max_error, delta)
        return one and replace(one, uncertainty=between(every, one.uncertainty))
    draws = _one_of_each(index, DRAWS, accept)
    found = [_threshold(uncertainties[rows], right[rows], max_error, delta / 2) for rows in draws]
    borders = sorted(-math.inf if one is None else one.uncertainty for one in found)
    border = borders[DRAWS // 2]
    if border == -math.inf:
        return None
    answered = uncertainties <= border
    return Threshold(max_error, between(every, border), int(answered.sum()), int((answered & ~right).sum()), delta)


def fewest_groups(max_error: float, delta: float = DELTA) -> int:
    """The number of groups below which no threshold guarantees ``max_error``, even if all predictions are right."""
    return math.ceil(round(min(math.log(delta / 2) / math.log1p(-max_error), MOST_GROUPS), 9))


def _one_of_each(index: np.ndarray, draws: int, accept: np.ndarray | None) -> Iterator[np.ndarray]:
    """Draws of one image of each group: indices, int64 [G], or fewer where not all are accepted."""
    rng = np.random.default_rng(0)
    order = np.argsort(index, kind="stable")
    _, starts, sizes = np.unique(index[order], return_index=True, return_counts=True)
    for _ in range(draws):
        rows = order[starts + rng.integers(0, sizes)]
        yield rows if accept is None else rows[rng.random(len(rows)) < accept[rows]]


def _threshold(uncertainties: np.ndarray, right: np.ndarray, max_error: float, delta: float) -> Threshold | None:
    """`guaranteed_threshold` of independent images."""
    from scipy.special import bdtr

    order = np.argsort(uncertainties, kind="stable")
    ordered = np.append(
        uncertainties[order], uncertainties.dtype.type(np.inf)
    )  # keep the precision that predictions are compared in
    wrong = np.concatenate([[0], np.cumsum(~right[order])])
    found, level = None, 0.0
    for coverage, share in _plan(len(uncertainties), max_error, delta):
        level += share
        border = ordered[math.ceil(round(coverage * len(uncertainties), 9))]
        answered = int(np.searchsorted(ordered, border, side="left"))
        errors = int(wrong[answered])
        if answered and bdtr(errors, answered, max_error) <= level:
            found = Threshold(max_error, min(float(np.nextafter(border, -1)), 1.0), answered, errors, delta)
        else:
            level = 0.0
    return found


def _plan(n: int, max_error: float, delta: float) -> list[tuple[float, float]]:
    """Coverages to test, ascending to 1, and the significance level that each one adds.

    Starts at which even zero errors could not pass the test are left out; their shares go to the other starts. If that leaves
    no start but the last ones, images are too few for several: there is one, at the lowest coverage that zero errors pass.
    """
    starts: tuple[float, ...] = STARTS
    while len(starts) > 1 and (1 - max_error) ** (starts[0] * n) > delta / len(starts):
        starts = starts[1:]
    if len(starts) <= LAST:
        fewest = math.log(delta) / math.log1p(-max_error)
        share = min(1.0, fewest / max(n, 1))
        starts = (round(math.ceil(round(share / STEP, 6)) * STEP, 9),)
    steps = [round(1 - STEP * i, 9) for i in range(round((1 - starts[0]) / STEP), -1, -1)]
    return [(coverage, delta / len(starts) if coverage in starts else 0.0) for coverage in steps]


def risk_coverage(uncertainties: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and risk when the N images are answered in order of increasing uncertainty, each [N].

    Among images of equal uncertainty, the risk is the mean over all orders.
    """
    order = np.argsort(uncertainties, kind="stable")
    _, group, count = np.unique(uncertainties[order], return_inverse=True, return_counts=True)
    wrong = (np.bincount(group, ~right[order]) / count)[group]
    answered = np.arange(1, len(uncertainties) + 1)
    return answered / len(uncertainties), np.cumsum(wrong) / answered


def aurc(uncertainties: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Area under the risk-coverage curve (AURC), and its excess over the best possible order, which has all right
    predictions first. Geifman, Uziel and El-Yaniv, 2019, arXiv:1805.08206.

    Args:
        uncertainties: float [N].
        right: bool [N].
    """
    area = float(risk_coverage(uncertainties, right)[1].mean())
    answered = np.arange(1, len(right) + 1)
    best = float((np.maximum(answered - int(right.sum()), 0) / answered).mean())
    return area, area - best
