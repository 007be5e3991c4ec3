"""Calibration errors: the difference between confidence and accuracy."""

from __future__ import annotations

import numpy as np

from petriscope.metrics.blocks import row_blocks
from petriscope.metrics.classification import BINS, bin_means, brier_each, calibration_error, nll_each


def equal_mass_bins(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> dict[str, np.ndarray]:
    """Bin images by confidence, with counts per bin as equal as ties allow. Nguyen and O'Connor, 2015, arXiv:1508.05154;
    Nixon et al., 2019, arXiv:1904.01685.

    Images of equal confidence share a bin, so the order of the images does not matter.

    Args:
        confidence: float [N], 0 to 1.
        correct: float or bool [N].

    Returns:
        ``count``, mean ``confidence`` and ``accuracy``, each [bins]; 0 in empty bins.
    """
    ordered = np.sort(confidence)
    edges = ordered[(np.arange(1, bins) * len(ordered)) // bins] if len(ordered) else np.zeros(bins - 1)
    return bin_means(np.searchsorted(edges, confidence, side="right"), confidence, correct, bins)


def ece_equal_mass(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error over bins of equal counts.

    With bins of equal width (`petriscope.metrics.classification.calibration_error`), nearly all images of a good
    predictor fall into the last bin, which hides the differences between them.
    """
    table = equal_mass_bins(confidence, correct, bins)
    return float((table["count"] * np.abs(table["accuracy"] - table["confidence"])).sum() / len(confidence))


def calibration_errors(probabilities: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """``ece_equal_mass``, ``ece``, ``nll`` (nats) and ``brier`` (0 to 2).

    Args:
        probabilities: float [N, K].
        targets: int64 [N].
    """
    confidence, correct, nll, brier = np.empty((4, len(targets)))
    for rows in row_blocks(len(targets), 8 * probabilities.shape[1]):
        p, true = np.asarray(probabilities[rows], dtype=np.float64), targets[rows]
        confidence[rows], correct[rows] = p.max(1), p.argmax(1) == true
        nll[rows], brier[rows] = nll_each(p, true), brier_each(p, true)
    return {
        "ece_equal_mass": ece_equal_mass(confidence, correct),
        "ece": calibration_error(confidence, correct),
        "nll": float(nll.mean()),
        "brier": float(brier.mean()),
    }
