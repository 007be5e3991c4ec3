"""Probabilities that mean what they say: one temperature, fitted on val, and what it changes.

Guo et al., 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599. The temperature divides the logarithm of
the probabilities, which for a single view is the same as dividing the logits. Where test-time augmentation averages the
probabilities of several views, it divides the logarithm of the average, and is fitted on that average. It moves no
image to another class.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import logsumexp

from petriscope.metrics.classification import BINS, calibration_error, nll_each

TINY = 1e-38  # of a probability, before its logarithm: about the smallest that float32 holds
SHARPEST, FLATTEST = 0.02, 50.0  # temperatures looked at


def fit_temperature(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """The temperature at which the true classes are likeliest.

    Between them, the images bring the likelihood and a prior brings as much as a fraction of one image: the logarithm
    of the temperature is normal around 0 with deviation 1. Where all images are right, or all are wrong, the likelihood
    alone would send the temperature to 0 or to infinity.

    Args:
        probabilities: float [N, K], as the network gives them.
        targets: int64 [N].
    """
    from scipy.optimize import minimize_scalar

    if len(targets) == 0 or probabilities.shape[1] < 2:
        return 1.0
    logs = _logs(probabilities)
    true = logs[np.arange(len(targets)), targets]

    def loss(log_sharpness: float) -> float:
        sharpness = math.exp(log_sharpness)
        return float((logsumexp(sharpness * logs, axis=1) - sharpness * true).sum() + log_sharpness**2 / 2)

    # The prior may add a second hollow far out: look everywhere first.
    grid = np.linspace(-math.log(FLATTEST), -math.log(SHARPEST), 41)
    best = int(np.argmin([loss(value) for value in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return math.exp(-float(found.x))


def scale(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities at a temperature, float32 [N, K]; ``scale(scale(p, t), 1 / t)`` is p again."""
    if temperature == 1:
        return np.asarray(probabilities, dtype=np.float32)
    logs = _logs(probabilities) / temperature
    return np.exp(logs - logsumexp(logs, axis=1, keepdims=True)).astype(np.float32)


def _logs(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), TINY))


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


def calibration_metrics(probabilities: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """``ece_equal_mass``, ``ece``, ``nll`` and ``brier`` (0 to 2) of float [N, K] and int64 [N]."""
    p = np.asarray(probabilities, dtype=np.float64)
    confidence, correct = p.max(1), (p.argmax(1) == targets).astype(float)
    return {
        "ece_equal_mass": ece_equal_mass(confidence, correct),
        "ece": calibration_error(confidence, correct),
        "nll": float(nll_each(p, targets).mean()),
        "brier": float(((p - np.eye(p.shape[1])[targets]) ** 2).sum(1).mean()),
    }
