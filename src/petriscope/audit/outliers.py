"""Pictures that are like no others of the set: noise, another object, a field without a cell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Outliers:
    """How far each picture lies from the others.

    Args:
        score: float32 [N], robust standard deviations of the logarithm of the distance to its nearest neighbors, above the
            median of the set.
        flagged: bool [N].
    """

    score: np.ndarray
    flagged: np.ndarray


def find_outliers(features: np.ndarray, targets: np.ndarray | None = None, *, share: float | None = None) -> Outliers:
    """Flag the pictures that lie far from their nearest neighbors.

    Ramaswamy et al., 2000, "Efficient Algorithms for Mining Outliers from Large Data Sets", doi:10.1145/342009.335437.

    Args:
        features: float32 [N, D].
        targets: int64 [N]; distances are judged within each class, for some classes vary more than others.
        share: flag this share of the set, the farthest; None: those beyond a robust cut.
    """
    raise NotImplementedError


def nearest(features: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """The k pictures nearest to each query, nearest first, the query itself left out.

    Args:
        features: float32 [N, D].
        queries: int64 [Q], indices of pictures.
        k: N - 1 at most are given.

    Returns:
        int64 [Q, k].
    """
    raise NotImplementedError
