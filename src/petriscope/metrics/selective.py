"""When to keep silent: answering only where the model is sure enough for a wanted error rate.

El-Yaniv and Wiener, 2010, "On the Foundations of Noise-free Selective Classification", JMLR 11:1605. The share that is
answered is the coverage, the error among it the risk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr

DELTA = 0.05  # how often the promise may be broken, over draws of val
STARTS = (0.5, 0.7, 0.9, 1.0)  # coverages that bring a share of DELTA
STEP = 0.01  # from one coverage tried to the next


def doubt(probabilities: np.ndarray) -> np.ndarray:
    """1 - confidence, [N]: the sum of all but the largest probability.

    Summed, not subtracted: probabilities that are 1 to float32 still differ in how far they are from it.
    """
    rest = np.array(probabilities, dtype=np.float64)
    rest[np.arange(len(rest)), rest.argmax(1)] = 0
    return rest.sum(1).astype(np.float32)


@dataclass(frozen=True)
class Threshold:
    """Answer images whose doubt is at most ``doubt``.

    Args:
        max_error: the error rate it is for.
        doubt: largest one that is answered.
        answered, wrong: of the images it was fitted on.
        delta: how often a threshold so chosen breaks its promise, at most.
    """

    max_error: float
    doubt: float
    answered: int
    wrong: int
    delta: float

    @property
    def confidence(self) -> float:
        return 1 - self.doubt


def guaranteed_threshold(
    doubts: np.ndarray, right: np.ndarray, max_error: float, delta: float = DELTA
) -> Threshold | None:
    """The threshold that answers most, with the error among answered images at most ``max_error`` with probability
    ``1 - delta``; None: these images are too few, or too often wrong, to promise it for any.

    Learn then test: Angelopoulos et al., 2021, arXiv:2110.01052. Thresholds are tried that answer half of these images,
    then 1 % more and so on: the binomial tail of the wrong ones among the answered tests whether the error is larger than
    wanted. Wiens's fallback procedure (2003, Pharmaceutical Statistics 2:211) hands the level on while tests succeed, and
    gives a share of it to later starts, where more images give the test more power. A threshold is the doubt of one
    image, below which the others are drawn as if it had been fixed (Geifman and El-Yaniv, 2017, arXiv:1705.08500).

    The promise holds for any number of images, if they are drawn as new ones will be and if cutting off more of the
    doubtful never makes the rest worse.

    Args:
        doubts: float [N], of images that played no part in training.
        right: bool [N].
        max_error: above 0, below 1.
    """
    if not 0 < max_error < 1 or not 0 < delta < 1:
        raise ValueError("max_error and delta lie between 0 and 1")
    order = np.argsort(doubts, kind="stable")
    ordered = np.append(doubts[order], doubts.dtype.type(np.inf))  # in their own precision, which the answers have too
    wrong = np.concatenate([[0], np.cumsum(~right[order])])
    found, level = None, 0.0
    for coverage, share in _plan(len(doubts), max_error, delta):
        level += share
        border = ordered[math.ceil(round(coverage * len(doubts), 9))]
        answered = int(np.searchsorted(ordered, border, side="left"))
        errors = int(wrong[answered])
        if answered and bdtr(errors, answered, max_error) <= level:
            found = Threshold(max_error, min(float(np.nextafter(border, -1)), 1.0), answered, errors, delta)
        else:
            level = 0.0
    return found


def _plan(n: int, max_error: float, delta: float) -> list[tuple[float, float]]:
    """Coverages to try, ascending to 1, and the level that each brings.

    Starts so early that not even answers without a mistake would pass there are left out, and the others have their share.
    """
    starts: tuple[float, ...] = STARTS
    while len(starts) > 1 and (1 - max_error) ** (starts[0] * n) > delta / len(starts):
        starts = starts[1:]
    steps = [round(1 - STEP * i, 9) for i in range(round((1 - starts[0]) / STEP), -1, -1)]
    return [(coverage, delta / len(starts) if coverage in starts else 0.0) for coverage in steps]


def risk_coverage(doubts: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and risk when the N images are answered from the surest on, each [N].

    Images of equal doubt are answered together: within them, the mean over all orders.
    """
    order = np.argsort(doubts, kind="stable")
    _, group, count = np.unique(doubts[order], return_inverse=True, return_counts=True)
    wrong = (np.bincount(group, ~right[order]) / count)[group]
    answered = np.arange(1, len(doubts) + 1)
    return answered / len(doubts), np.cumsum(wrong) / answered


def aurc(doubts: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Area under the risk-coverage curve, and how much of it better ordering could take away.

    Geifman, Uziel and El-Yaniv, 2019, arXiv:1805.08206: the excess is over the order that has all right images first.
    """
    area = float(risk_coverage(doubts, right)[1].mean())
    answered = np.arange(1, len(right) + 1)
    best = float((np.maximum(answered - int(right.sum()), 0) / answered).mean())
    return area, area - best
