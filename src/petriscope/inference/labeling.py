"""Which of many images without labels it would be most useful to label.

BADGE (Ash et al., 2020, "Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds", arXiv:1906.03671): if an image
had the label that is predicted, the gradient of the loss by the weights of the last layer would be (p - onehot) x features;
of several labels, (p - those that are predicted) x features.
It is long where the network is uncertain, and points elsewhere for images of another kind. A batch is drawn as k-means++
draws its centers, each with a probability in proportion to the squared distance to the nearest one before, so that its images
are uncertain and unlike each other.
"""

from __future__ import annotations

import numpy as np


def most_useful(
    probabilities: np.ndarray, features: np.ndarray, count: int, seed: int = 0, present: np.ndarray | None = None
) -> np.ndarray:
    """The images to label, the first the one of the longest gradient, int64 [min(count, N)].

    Args:
        probabilities: float [N, K].
        features: what the last layer takes, float [N, D]; with D 0, only the probabilities count. Values that are not finite
            count as 0.
        count: at least 0.
        seed: of the draws.
        present: which labels are predicted, bool [N, K]; None: the most probable class alone.
    """
    rng, total = np.random.default_rng([seed, 4]), len(probabilities)
    first = probabilities.astype(np.float64)
    if present is None:
        present = np.arange(first.shape[1]) == first.argmax(1)[:, None]
    first -= present
    second = (
        np.nan_to_num(features.astype(np.float64), posinf=0, neginf=0) if features.shape[1] else np.ones((total, 1))
    )
    second /= max(float(np.abs(second).max(initial=0)), 1e-12)  # only ratios count, and squares must stay finite
    length = np.square(first).sum(1) * np.square(second).sum(1)
    chosen: list[int] = []
    nearest = np.full(total, np.inf)
    left = np.ones(total, bool)
    while len(chosen) < min(count, total):
        weight = np.where(left, nearest, 0.0) if chosen else length
        if not chosen or weight.sum() <= 0:  # the others are certain, or copies
            row = int(np.where(left, length, -1.0).argmax())
        else:
            row = int(rng.choice(total, p=weight / weight.sum()))
        chosen.append(row)
        left[row] = False
        apart = length + length[row] - 2 * (first @ first[row]) * (second @ second[row])
        nearest = np.minimum(nearest, np.where(apart > 1e-9 * (length + length[row]), apart, 0.0))
    return np.array(chosen, dtype=np.int64)
