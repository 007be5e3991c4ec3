"""Whether the guarantees made on val hold on disturbed images.

Three shares tell: the images that are answered, the answers that are wrong, and the prediction sets that contain the true
class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from petriscope.core.results import GuaranteeShares, GuaranteesUnderShift, Metric
from petriscope.metrics.conformal import METHOD, sets
from petriscope.metrics.intervals import bootstrap_weights, percentile95
from petriscope.metrics.segmentation import divide
from petriscope.metrics.selective import uncertainty
from petriscope.trust.state import Reference, answered_by

MAX_ERROR, LEVEL = 0.01, 0.95
METRICS = ("answered", "wrong", "held")


class Watch:
    """Records answers and prediction sets during passes over the same images in the same order.

    Args:
        answer: uint8 [B, H, W, C] -> probabilities, float32 [B, K], and out-of-distribution scores, float32 [B] or None.
        reference: the predictions on val, from which the threshold and the limits are computed.
        classes: K.
    """

    def __init__(
        self, answer: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]], reference: Reference, classes: int
    ) -> None:
        self.answer = answer
        self.threshold = reference.threshold(MAX_ERROR)
        self.limits = reference.limits(LEVEL, classes, METHOD)
        self._kept: dict[str, list[np.ndarray]] = {}

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Probabilities, float32 [B, K]. They are kept for the next call of `note`."""
        self._last, self._ood = self.answer(images)
        return self._last

    def note(self, name: str, targets: np.ndarray) -> None:
        """Record the batch predicted last: its pass (the name of a corruption) and its targets, int64 [B]."""
        p = self._last
        answered = answered_by(self.threshold, uncertainty(p), self._ood)
        wrong = answered & (p.argmax(1) != targets)
        held = sets(p, self.limits, METHOD)[np.arange(len(p)), targets]
        self._kept.setdefault(name, []).append(np.stack([answered, wrong, held], 1))

    def metrics(self, plain: str, names: Sequence[str], n: int, resamples: int) -> GuaranteesUnderShift:
        """Shares over the first ``n`` images, with 95 % bootstrap intervals over images: ``answered`` at a wanted error rate
        of `MAX_ERROR`; ``wrong`` among those (None if nothing is answered); and ``held``, the share of prediction sets of
        coverage `LEVEL` that contain the true class.

        Args:
            plain: name of the pass over undisturbed images.
            names: corruptions that ``disturbed`` is computed over; ``corruptions`` has each one.
            n: number of images.
            resamples: number of bootstrap resamples.
        """
        passes = {name: np.concatenate(found) for name, found in self._kept.items()}
        passes[plain] = passes[plain][:n]
        each = {name: found.reshape(-1, n, len(METRICS)) for name, found in passes.items()}
        weights = np.concatenate(list(bootstrap_weights(n, resamples)))
        return GuaranteesUnderShift(
            max_error=MAX_ERROR,
            level=LEVEL,
            clean=_shares(each[plain], weights),
            disturbed=_shares(np.concatenate([each[name] for name in names]), weights),
            corruptions={name: _shares(found, weights) for name, found in each.items() if name != plain},
        )


def _shares(kept: np.ndarray, weights: np.ndarray) -> GuaranteeShares:
    """The shares of P passes, bool [P, N, 3] as `Watch.note` records them, for bootstrap weights of the images, [R, N]."""
    total = kept.sum(0, dtype=np.float64)  # [N, 3]

    def shares(sums: np.ndarray, images: np.ndarray) -> np.ndarray:
        return np.stack([sums[:, 0] / images, divide(sums[:, 1], sums[:, 0]), sums[:, 2] / images], 1)

    values = shares(total.sum(0)[None], np.array([len(kept) * len(total)]))[0]
    drawn = shares(weights @ total, len(kept) * weights.sum(1))
    metrics = {}
    for name, value, column in zip(METRICS, values, drawn.T, strict=True):
        defined = bool(np.isfinite(value))
        ci95 = percentile95(column) if defined else None
        metrics[name] = Metric(value=float(value) if defined else None, ci95=ci95)
    return GuaranteeShares(metrics=metrics)
