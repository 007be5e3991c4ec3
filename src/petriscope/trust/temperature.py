"""Temperature scaling: calibrate probabilities with a single temperature, fitted on val.

The temperature divides the log-probabilities; for a single view, this is the same as dividing the logits. If test-time
augmentation averages the probabilities of several views, the temperature is fitted on that average and divides its
logarithm. The predicted classes do not change. Guo et al., 2017, "On Calibration of Modern Neural Networks",
arXiv:1706.04599.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import logsumexp

from petriscope.metrics.blocks import row_blocks

TINY = 1e-38  # lowest probability that a logarithm is taken of; about the smallest normal float32
SHARPEST, FLATTEST = 0.02, 50.0  # range of the temperature


def fit_temperature(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """The temperature with the highest posterior density, `SHARPEST` to `FLATTEST`; 1 if there is nothing to fit.

    The prior is weak: the logarithm of the temperature is normal with mean 0 and standard deviation 1. Without a prior, the
    temperature would go to 0 if all predictions are right, and to infinity if all are wrong.

    Args:
        probabilities: of the network, before temperature scaling, float [N, K].
        targets: int64 [N].
    """
    from scipy.optimize import minimize_scalar

    if len(targets) == 0 or probabilities.shape[1] < 2:
        return 1.0
    true, whole = log_probabilities(probabilities[np.arange(len(targets)), targets]), np.empty(len(targets))

    def loss(log_sharpness: float) -> float:
        sharpness = math.exp(log_sharpness)
        for rows in row_blocks(len(targets), 8 * probabilities.shape[1]):
            whole[rows] = logsumexp(sharpness * log_probabilities(probabilities[rows]), axis=1)
        return float((whole - sharpness * true).sum() + log_sharpness**2 / 2)

    # The prior may add a second local minimum, so start from the best point of a grid.
    grid = np.linspace(-math.log(FLATTEST), -math.log(SHARPEST), 41)
    best = int(np.argmin([loss(value) for value in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return math.exp(-float(found.x))


def scale(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Scale probabilities, float [N, K, ...], with a temperature; float32 of the same shape. ``scale(scale(p, t), 1 / t)``
    is p, up to rounding."""
    if temperature == 1:
        return np.asarray(probabilities, dtype=np.float32)
    out = np.empty(np.shape(probabilities), dtype=np.float32)
    for rows in row_blocks(len(out), 8 * math.prod(out.shape[1:])):
        logs = log_probabilities(probabilities[rows]) / temperature
        out[rows] = np.exp(logs - logsumexp(logs, axis=1, keepdims=True))
    return out


def log_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """Logarithms, float64, of probabilities of any shape, of which those below `TINY` count as that."""
    return np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), TINY))
