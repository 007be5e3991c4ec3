"""Calibration errors: how far confidence is from accuracy."""

from __future__ import annotations

import numpy as np

from petriscope.metrics.classification import BINS, calibration_error, nll_each


def equal_mass_bins(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> dict[str, np.ndarray]:
    """Images by confidence, in bins of as equal counts as ties allow: ``count``, mean ``confidence``, ``accuracy``.

    Equal confidences share a bin, so the order of the images does not matter. Nguyen and O'Connor, 2015,
    arXiv:1508.05154; Nixon et al., 2019, arXiv:1904.01685.
    """
    ordered = np.sort(confidence)
    edges = ordered[(np.arange(1, bins) * len(ordered)) // bins] if len(ordered) else np.zeros(bins - 1)
    index = np.searchsorted(edges, confidence, side="right")
    count = np.bincount(index, minlength=bins)
    some = np.maximum(count, 1)
    return {
        "count": count,
        "confidence": np.bincount(index, confidence, minlength=bins) / some,
        "accuracy": np.bincount(index, correct, minlength=bins) / some,
    }


def ece_equal_mass(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error over bins of equal counts.

    Bins of equal width (`petriscope.metrics.classification.calibration_error`) leave nearly all images of a good
    predictor in the last one, which then says nothing of how they differ.
    """
    table = equal_mass_bins(confidence, correct, bins)
    return float((table["count"] * np.abs(table["accuracy"] - table["confidence"])).sum() / len(confidence))


def calibration_errors(probabilities: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """``ece_equal_mass``, ``ece``, ``nll`` and ``brier`` (0 to 2) of float [N, K] and int64 [N]."""
    p = np.asarray(probabilities, dtype=np.float64)
    confidence, correct = p.max(1), (p.argmax(1) == targets).astype(float)
    return {
        "ece_equal_mass": ece_equal_mass(confidence, correct),
        "ece": calibration_error(confidence, correct),
        "nll": float(nll_each(p, targets).mean()),
        "brier": float(((p - np.eye(p.shape[1])[targets]) ** 2).sum(1).mean()),
    }
