"""What images of val are like, fitted to be compared with others; see `petriscope.trust.two_sample`."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from petriscope.data.appearance import measure
from petriscope.metrics.intervals import group_index
from petriscope.metrics.selective import uncertainty
from petriscope.trust.ood import Detector
from petriscope.trust.two_sample import Likeness, looks_of, traits_of

MOST_OF_VAL = 2000
DIRECTIONS = 32  # of the features


def appearance_of(images: Tensor) -> np.ndarray:
    """The measures in `Traits.appearance` of images, uint8 [B, H, W, C]."""
    return measure(images).joined().cpu().numpy()


def fit_likeness(
    raw: np.ndarray,
    features: np.ndarray,
    ood: np.ndarray | None,
    appearance: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray | None,
    detector: Detector | None,
) -> Likeness:
    """Keep what images of val are like.

    Args:
        raw, features, appearance: as in `Likeness.see`, of M images of val, at most `MOST_OF_VAL`.
        targets: int64 [M].
        ood: None: scores are not compared.
        groups: names of the groups of these images, [M]; None: images are independent.
        detector: of the model; its features are compared. None: features are not compared.
    """
    project = np.zeros((features.shape[1], 0), np.float32) if detector is None else directions(detector)
    points = features.astype(np.float64) @ project
    traits = traits_of(points, uncertainty(raw), raw.argmax(1), ood, appearance)
    return Likeness(project, traits, targets, group_index(groups))


def fit_looks(raw: np.ndarray, appearance: np.ndarray, targets: np.ndarray, groups: np.ndarray | None) -> Likeness:
    """Keep what images of another place are like that the network was adapted to. It learned from them, and what it says of
    them is not what it says of new ones; so their appearance alone is compared. Arguments are those of `fit_likeness`."""
    known = np.isfinite(appearance)
    count = np.maximum(known.sum(0), 1)
    center = np.where(known, appearance, 0).sum(0) / count
    spread = np.sqrt(np.where(known, np.square(appearance - center), 0).sum(0) / count)
    center, project = center.astype(np.float32), np.diag(1 / np.maximum(spread, 1e-3)).astype(np.float32)
    return Likeness(project, looks_of(project, center, raw.argmax(1), appearance), targets, group_index(groups), center)


def directions(detector: Detector) -> np.ndarray:
    """Up to `DIRECTIONS` directions of the features, float32 [D, R], scaled to a standard deviation of 1 within classes.

    They are those that vary most among all in which the means of the classes agree: how an image differs from others of its
    class says little there about its class, so another mix of classes hardly moves their means.
    """
    whiten, centers = detector.features.whiten.astype(np.float64), detector.features.centers.astype(np.float64)
    if not whiten.size:
        return np.zeros((len(whiten), 0), np.float32)
    between = np.linalg.svd(centers - centers.mean(0), full_matrices=False)[2]
    between = between[: min(len(centers) - 1, whiten.shape[1] // 2)]
    kept = np.eye(whiten.shape[1]) - between.T @ between  # columns of whiten are in ascending order of variance
    basis: list[np.ndarray] = []
    for row in kept[::-1]:
        for _ in range(2):  # Gram-Schmidt, twice for the sake of rounding
            row = row - sum((other * (other @ row) for other in basis), np.zeros_like(row))
        if len(basis) < DIRECTIONS and (length := float(np.linalg.norm(row))) > 0.1:
            basis.append(row / length)
    return (whiten @ np.array(basis).reshape(-1, whiten.shape[1]).T).astype(np.float32)
