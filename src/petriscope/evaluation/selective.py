"""When to keep silent: answering only where the model is sure enough for a wanted error rate.

El-Yaniv and Wiener, 2010, "On the Foundations of Noise-free Selective Classification", JMLR 11:1605. The share that is
answered is the coverage, the error among it the risk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr

DELTA = 0.05  # how often the promise may be broken, over draws of val
STEP = 1.05  # ratio of one threshold tried to the next
STARTS = ((1.0, 0.5), (3.0, 1 / 6), (10.0, 1 / 6))  # in units of the wanted error, and their share of DELTA


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
    thresholds = _thresholds(max_error)
    levels = _levels(thresholds, max_error, delta)
    found, level = None, 0.0
    for threshold, share in zip(thresholds, levels, strict=True):
        level += share
        answered = int(np.searchsorted(ordered, threshold, side="right"))
        errors = int(wrong[answered])
        if answered and bdtr(errors, answered, max_error) <= level:
            found = Threshold(max_error, float(threshold), answered, errors, delta)
        else:
            level = 0.0
    return found


def _thresholds(max_error: float) -> np.ndarray:
    steps = int(np.ceil(np.log(1 / max_error) / np.log(STEP)))
    return np.minimum(max_error * STEP ** np.arange(steps + 1), 1.0).astype(np.float32)


def _levels(thresholds: np.ndarray, max_error: float, delta: float) -> np.ndarray:
    """The share of ``delta`` that each threshold brings; the last one, which answers everything, brings what is left."""
    levels = np.zeros(len(thresholds))
    for factor, share in STARTS:
        start = int(np.searchsorted(thresholds, np.float32(min(factor * max_error, 1.0))))
        levels[min(start, len(levels) - 1)] += share * delta
    levels[-1] += delta - levels.sum()
    return levels


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
