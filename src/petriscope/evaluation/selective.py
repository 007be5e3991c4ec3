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
STEP = 1.05  # ratio of one threshold tried to the next
STARTS = (0.1, 0.2, 0.4, 0.8, 1.6)  # thresholds that bring a share of DELTA, in units of the wanted error


def doubt(probabilities: np.ndarray) -> np.ndarray:
    """1 - confidence, [N]: the sum of all but the largest probability.

    Summed, not subtracted: probabilities that are 1 to float32 still differ in how far they are from it.
    """
    rest = np.array(probabilities, dtype=np.float64)
    rest[np.arange(len(rest)), rest.argmax(1)] = 0
    return rest.sum(1).astype(np.float32)


@dataclass(frozen=True)
class Threshold:
    """Answer pictures whose doubt is at most ``doubt``.

    Args:
        max_error: the error rate it is for.
        doubt: largest one that is answered.
        answered, wrong: of the pictures it was fitted on.
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
    """The threshold that answers most, with the error among answered pictures at most ``max_error`` with probability
    ``1 - delta``; None: these pictures are too few, or too often wrong, to promise it for any.

    Learn then test: Angelopoulos et al., 2021, arXiv:2110.01052. For every threshold of a fixed list, from the most
    cautious, that the error is larger than wanted is tested by the binomial tail of the wrong ones among the answered;
    Wiens's fallback procedure (2003, Pharmaceutical Statistics 2:211) hands the level on while tests succeed, and gives a
    share of it to later starts, where more pictures give the test more power. The list does not depend on the pictures,
    so the promise holds at any number of them if they are drawn as new ones will be.

    Args:
        doubts: float [N], of pictures that played no part in training.
        right: bool [N].
        max_error: above 0, below 1.
    """
    if not 0 < max_error < 1 or not 0 < delta < 1:
        raise ValueError("max_error and delta lie between 0 and 1")
    order = np.argsort(doubts, kind="stable")
    ordered, wrong = doubts[order], np.concatenate([[0], np.cumsum(~right[order])])
    found, level = None, 0.0
    for threshold, share in zip(*_plan(max_error, delta), strict=True):
        level += share
        answered = int(np.searchsorted(ordered, threshold, side="right"))
        errors = int(wrong[answered])
        if answered and bdtr(errors, answered, max_error) <= level:
            found = Threshold(max_error, float(threshold), answered, errors, delta)
        else:
            level = 0.0
    return found


def _plan(max_error: float, delta: float) -> tuple[np.ndarray, np.ndarray]:
    """Thresholds of doubt, ascending to 1, and the level that each brings, float32 and float64 [T]."""
    first = STARTS[0] * max_error
    steps = math.ceil(math.log(1 / first) / math.log(STEP))
    thresholds = np.minimum(first * STEP ** np.arange(steps + 1), 1.0)
    starts = [start * max_error for start in STARTS if start * max_error < 1]
    levels = np.zeros(len(thresholds))
    levels[np.searchsorted(thresholds, np.multiply(starts, 1 - 1e-9))] = delta / len(starts)
    return thresholds.astype(np.float32), levels


def risk_coverage(doubts: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and risk when the N pictures are answered from the surest on, each [N].

    Pictures of equal doubt are answered together: within them, the mean over all orders.
    """
    order = np.argsort(doubts, kind="stable")
    _, group, count = np.unique(doubts[order], return_inverse=True, return_counts=True)
    wrong = (np.bincount(group, ~right[order]) / count)[group]
    answered = np.arange(1, len(doubts) + 1)
    return answered / len(doubts), np.cumsum(wrong) / answered


def aurc(doubts: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Area under the risk-coverage curve, and how much of it better ordering could take away.

    Geifman, Uziel and El-Yaniv, 2019, arXiv:1805.08206: the excess is over the order that has all right pictures first.
    """
    area = float(risk_coverage(doubts, right)[1].mean())
    answered = np.arange(1, len(right) + 1)
    best = float((np.maximum(answered - int(right.sum()), 0) / answered).mean())
    return area, area - best
