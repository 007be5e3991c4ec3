"""Images that are unlike all others of the set: noise, a different object, a field without a cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from petriscope.core.errors import RequestError

DIMENSIONS = 16  # with more, a k-d tree is no faster than brute force
CUT = 5.0  # robust standard deviations
NEIGHBORS = (10, 100)  # fewest and most
NEIGHBORS_SHARE = 0.005  # of the set; smaller clusters of similar images are still far from their neighbors
FEW = 50  # images a class needs so that its distances are judged within the class


@dataclass(frozen=True, eq=False)
class Outliers:
    """How far each image lies from the others.

    Args:
        score: float32 [N], the logarithm of the distance to the nearest neighbors, in robust standard deviations above
            the median.
        flagged: bool [N].
    """

    score: np.ndarray
    flagged: np.ndarray


def find_outliers(features: np.ndarray, targets: np.ndarray | None = None, *, share: float | None = None) -> Outliers:
    """Flag the images that are far from their nearest neighbors.

    The score is the distance to the k-th nearest neighbor, where k is 0.5 % of the set, but 10 to 100. So clusters of
    fewer than k similar images, such as several images of noise, stand out like single images do. Ramaswamy et al., 2000,
    "Efficient Algorithms for Mining Outliers from Large Data Sets", doi:10.1145/342009.335437.

    Args:
        features: float32 [N, D]; the first 16 principal components are used.
        targets: int64 [N]; the score is then the lower one of the score within the set and the score within the image's
            class, so that a class that varies more than the others is not flagged for that. Classes of fewer than 50
            images have no score of their own.
        share: share of the set to flag, the farthest images; None: flag scores above 5.

    Raises:
        RequestError: ``share`` is not between 0 and 1.
    """
    if share is not None and not 0 <= share <= 1:
        raise RequestError(f"share is the share of the set to flag, from 0 to 1, not {share}")
    count = len(features)
    if count < 3:
        return Outliers(np.zeros(count, np.float32), np.zeros(count, dtype=bool))
    points = _project(features)
    k = min(count - 1, int(np.clip(NEIGHBORS_SHARE * count, *NEIGHBORS)))
    distances = _index(points, k + 1).kneighbors(points)[0][:, -1]
    logarithm = np.log(np.maximum(distances, 1e-6))
    score = _deviation(logarithm, np.ones(count, dtype=bool))
    if targets is not None:
        for label in np.flatnonzero(np.bincount(targets) >= FEW):
            members = targets == label
            score[members] = np.minimum(score, _deviation(logarithm, members))[members]
    score = score.astype(np.float32)
    if share is None:
        return Outliers(score, score > CUT)
    flagged = np.zeros(count, dtype=bool)
    flagged[np.argsort(-score, kind="stable")[: round(share * count)]] = True
    return Outliers(score, flagged)


def nearest(features: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """The k images nearest to each query, nearest first, without the query itself.

    Args:
        features: float32 [N, D]; compared in the same way as by `find_outliers`.
        queries: int64 [Q], indices of images.
        k: number of neighbors; if the set has fewer other images, all of them are returned.

    Returns:
        int64 [Q, min(k, N - 1)].
    """
    queries = np.asarray(queries, dtype=np.int64)
    k = max(min(k, len(features) - 1), 0)
    if not k or not len(queries):
        return np.zeros((len(queries), k), dtype=np.int64)
    points = _project(features)
    found = _index(points, k + 1).kneighbors(points[queries])[1]
    itself = found == queries[:, None]
    itself[~itself.any(1), -1] = True  # more than k images are identical to it: leave out the last one
    return found[~itself].reshape(len(queries), k).astype(np.int64)


def _project(features: np.ndarray) -> np.ndarray:
    """float64 [N, at most 16]: principal components."""
    centered = features - features.mean(0, dtype=np.float64)
    _, axes = np.linalg.eigh(centered.T @ centered)
    return centered @ axes[:, -DIMENSIONS:]


def _index(points: np.ndarray, k: int) -> Any:
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=k, algorithm="kd_tree").fit(points)


def _deviation(values: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Deviation from the median of the members in robust standard deviations, which are at least 0.05, as those of
    identical images are 0."""
    middle = np.median(values[members])
    spread = 1.4826 * float(np.median(np.abs(values[members] - middle)))
    return (values - middle) / max(spread, 0.05)
