"""Which labels are answered, where images have any number of them."""

from __future__ import annotations

import numpy as np

ABSENT, PRESENT = 0, 1
ANSWERS = ("absent", "present")


def doubts(probabilities: np.ndarray, cutoffs: np.ndarray | float) -> np.ndarray:
    """The probability that what is said of a label is wrong, float [N, K] or [N]: that it is present where it is said to be
    absent, and the other way round."""
    return np.where(probabilities >= cutoffs, 1 - probabilities, probabilities)


def answered_labels(
    probabilities: np.ndarray, ood: np.ndarray | None, cutoffs: np.ndarray, limits: np.ndarray
) -> np.ndarray:
    """Which labels are answered, bool [N, K]: none of an image that is out of distribution.

    Args:
        probabilities: scaled, float32 [N, K].
        ood: out-of-distribution scores, float32 [N]; None: there is no detector.
        limits: as of `LabelReference.limits`.
    """
    present = probabilities >= cutoffs
    sure = doubts(probabilities, cutoffs) <= np.where(present, limits[:, PRESENT], limits[:, ABSENT])
    return sure if ood is None else sure & (ood <= 1)[:, None]
