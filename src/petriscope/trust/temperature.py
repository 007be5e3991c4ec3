"""Temperature scaling: one temperature, fitted on val, that makes probabilities match how often they are right.

Guo et al., 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599. The temperature divides the logarithm of
the probabilities, which for a single view is the same as dividing the logits. Where test-time augmentation averages the
probabilities of several views, it divides the logarithm of the average, and is fitted on that average. It moves no
image to another class.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import logsumexp

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
