"""Whether the guarantees made on val hold on disturbed images.

Three shares tell: the images that are answered, the answers that are wrong, and the prediction sets that contain the true
class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from petriscope.core.results import GuaranteeShares, GuaranteesUnderShift, Metric
from petriscope.metrics.conformal import METHOD, sets
from petriscope.metrics.intervals import bootstrap_weights, group_index, percentile95
from petriscope.metrics.segmentation import divide
from petriscope.metrics.selective import uncertainty
from petriscope.trust.state import Reference, answered_by

MAX_ERROR, LEVEL = 0.01, 0.95
METRICS = ("answered", "wrong", "held")
ALL = ""  # the sum over passes; no pass has an empty name


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
        """Probabilities, float32 [B, K]. They are kept for the next call of `judge`."""
        self._last, self._ood = self.answer(images)
        return self._last

    def judge(self, targets: np.ndarray) -> np.ndarray:
        """Whether each image of the batch predicted last is answered, wrongly so, and in its prediction set, bool [B, 3].

        Args:
            targets: int64 [B].
        """
        p = self._last
        answered = answered_by(self.threshold, uncertainty(p), self._ood)
        wrong = answered & (p.argmax(1) != targets)
        held = sets(p, self.limits, METHOD)[np.arange(len(p)), targets]
        return np.stack([answered, wrong, held], 1)

    def keep(self, name: str, judged: np.ndarray) -> None:
        """Record images of a pass, the name of a corruption, by what `judge` gave for them."""
        self._kept.setdefault(name, []).append(judged)

    def metrics(
        self, plain: str, names: Sequence[str], n: int, resamples: int, groups: np.ndarray | None = None
    ) -> GuaranteesUnderShift:
        """Shares over the first ``n`` images, with 95 % bootstrap intervals over images or groups: ``answered`` at a wanted
        error rate of `MAX_ERROR`; ``wrong`` among those (None if nothing is answered); and ``held``, the share of prediction
        sets of coverage `LEVEL` that contain the true class.

        Args:
            plain: name of the pass over undisturbed images.
            names: corruptions that ``disturbed`` is computed over; ``corruptions`` has each one.
            n: number of images.
            resamples: number of bootstrap resamples.
            groups: names of the groups of images, [N]; None: images are independent.
        """
        passes = {name: np.concatenate(found) for name, found in self._kept.items()}
        passes[plain] = passes[plain][:n]
        each = {name: found.reshape(-1, n, len(METRICS)) for name, found in passes.items()}
        totals = {name: found.sum(0, dtype=np.float64) for name, found in each.items()}
        totals[ALL] = sum((totals[name] for name in names), np.zeros((n, len(METRICS))))
        drawn = {name: [np.empty((0, len(METRICS) + 1))] for name in totals}
        for weights in bootstrap_weights(n, resamples, index=group_index(groups)):
            for name, total in totals.items():
                drawn[name].append(np.concatenate([weights @ total, weights.sum(1, keepdims=True)], 1))

        def shares(name: str, passes: int) -> GuaranteeShares:
            return _shares(totals[name], np.concatenate(drawn[name]), passes)

        return GuaranteesUnderShift(
            max_error=MAX_ERROR,
            level=LEVEL,
            clean=shares(plain, len(each[plain])),
            disturbed=shares(ALL, sum(len(each[name]) for name in names)),
            corruptions={name: shares(name, len(found)) for name, found in each.items() if name != plain},
        )


def _shares(total: np.ndarray, drawn: np.ndarray, passes: int) -> GuaranteeShares:
    """The shares of P passes.

    Args:
        total: sums over the passes of what `Watch.judge` gives, float64 [N, 3].
        drawn: sums of these over the images of each bootstrap resample, and the number of images drawn, float64 [R, 4].
    """

    def shares(sums: np.ndarray, images: np.ndarray) -> np.ndarray:
        return np.stack([sums[:, 0] / images, divide(sums[:, 1], sums[:, 0]), sums[:, 2] / images], 1)

    values = shares(total.sum(0)[None], np.array([passes * len(total)]))[0]
    metrics = {}
    for name, value, column in zip(METRICS, values, shares(drawn[:, :3], passes * drawn[:, 3]).T, strict=True):
        defined = bool(np.isfinite(value))
        ci95 = percentile95(column) if defined and len(drawn) else None
        metrics[name] = Metric(value=float(value) if defined else None, ci95=ci95)
    return GuaranteeShares(metrics=metrics)
