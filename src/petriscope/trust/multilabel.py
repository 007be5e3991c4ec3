"""What is fitted on val where images have any number of labels: each label is a question of its own, with a scaling of its
probability, a cutoff, and the doubt up to which "present" and "absent" are answered."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import expit

from petriscope.core.results import LabelAnswers
from petriscope.metrics.cutoffs import between
from petriscope.metrics.intervals import group_index, proportion95
from petriscope.metrics.selective import DELTA, guaranteed_threshold
from petriscope.trust.label_rules import ABSENT, ANSWERS, PRESENT, answered_labels, doubts
from petriscope.trust.temperature import FLATTEST, SHARPEST, log_probabilities
from petriscope.trust.two_sample import Likeness

HALF = 0.5  # the cutoff of a label that no image of val has, or that all have
SURE = 2.0**-24  # a probability of 1 in float32 counts as this much less, so that the rest of it has a logarithm
OFFSET = 3.0  # standard deviation of the prior of an offset of log-odds
MOST_OFFSET = 30.0
KINDS = {
    "slopes": np.float32,
    "offsets": np.float32,
    "cutoffs": np.float32,
    "raw": np.float32,
    "target": np.uint8,
    "ood": np.float32,
    "index": np.int64,
}


@dataclass(frozen=True, eq=False)
class LabelReference:
    """The predictions on val, from which cutoffs and abstention are computed.

    Args:
        slopes, offsets: of the log-odds of each label, float32 [K]; see `fit_odds`.
        cutoffs: the scaled probability from which a label is present, float32 [K].
        raw: probabilities before scaling, float32 [N, K].
        target: uint8 [N, K].
        ood: out-of-distribution score, float32 [N]; see `petriscope.trust.ood.Detector`.
        index: groups of the images, int64 [N], as `petriscope.metrics.intervals.group_index` has them; None: images are
            independent.
    """

    slopes: np.ndarray
    offsets: np.ndarray
    cutoffs: np.ndarray
    raw: np.ndarray
    target: np.ndarray
    ood: np.ndarray
    index: np.ndarray | None = None

    def scaled(self, raw: np.ndarray) -> np.ndarray:
        """Scaled probabilities, float32 [N, K]. The order of the images by a label stays."""
        return scale_labels(raw, self.slopes, self.offsets)

    def limits(self, max_error: float, delta: float = DELTA) -> np.ndarray:
        """The greatest doubt at which "absent" and "present" are answered for each label, float64 [K, 2]; minus infinity where
        val guarantees nothing.

        With probability ``1 - delta``, at most ``max_error`` of the images for which a label is answered "present" lack it,
        and likewise for "absent": two guarantees for each label, each on its own, see
        `petriscope.metrics.selective.guaranteed_threshold`. Errors over both answers would say little of a rare label, of which
        "absent" is nearly always right. Only images that are in distribution count, because others are never answered.
        """
        p, out = self.scaled(self.raw), np.full((len(self.cutoffs), 2), -math.inf)
        inside = self.ood <= 1
        for k, cutoff in enumerate(self.cutoffs):
            present, doubt = p[:, k] >= cutoff, doubts(p[:, k], cutoff)
            for answer in (ABSENT, PRESENT):
                rows = np.flatnonzero((present == answer) & inside)
                index = None if self.index is None else group_index(self.index[rows])
                right = self.target[rows, k] == answer
                if len(rows) and (found := guaranteed_threshold(doubt[rows], right, max_error, delta, index)):
                    out[k, answer] = found.uncertainty
        return out

    def arrays(self) -> dict[str, np.ndarray]:
        """All that a model file keeps, by name."""
        found = {name: getattr(self, name) for name in KINDS}
        return {name: values for name, values in found.items() if values is not None}

    def sound(self, classes: int) -> bool:
        """Whether the arrays fit together and hold what they should for a model of so many classes."""
        n, flat = len(self.raw), [self.ood, *([] if self.index is None else [self.index])]
        return (
            self.raw.shape == self.target.shape == (n, classes)
            and self.slopes.shape == self.offsets.shape == self.cutoffs.shape == (classes,)
            and all(each.shape == (n,) and not np.isnan(each).any() for each in flat)
            and bool(((self.raw >= 0) & (self.raw <= 1)).all() and (self.target <= 1).all())
            and bool(
                (np.isfinite(self.offsets) & (self.slopes > 0) & np.isfinite(self.slopes) & (self.cutoffs >= 0)).all()
            )
            and (self.index is None or bool((self.index >= 0).all()))
        )


def fit_labels(
    raw: np.ndarray, targets: np.ndarray, ood: np.ndarray | None = None, groups: np.ndarray | None = None
) -> LabelReference:
    """Fit the scaling and the cutoff of each label on val.

    Args:
        raw: probabilities of the network, float32 [N, K].
        targets: uint8 [N, K].
        ood: out-of-distribution scores, float32 [N]; None: all images are in distribution.
        groups: names of the groups of images, [N]; None: images are independent.
    """
    columns = range(targets.shape[1])
    raw = np.asarray(raw, dtype=np.float32)
    fitted = np.array([fit_odds(raw[:, k], targets[:, k] == 1) for k in columns], dtype=np.float32)
    slopes, offsets = fitted[:, 0], fitted[:, 1]
    p = scale_labels(raw, slopes, offsets)
    cutoffs = np.array([best_cutoff(p[:, k], targets[:, k] == 1) for k in columns], dtype=np.float32)
    ood = np.zeros(len(raw), np.float32) if ood is None else ood
    return LabelReference(slopes, offsets, cutoffs, raw, targets, ood, group_index(groups))


def best_cutoff(probabilities: np.ndarray, positive: np.ndarray) -> float:
    """The cutoff with the highest F1 among N images, in the middle between two of their probabilities; `HALF` if all images have
    the label, or none. Lipton, Elkan and Naryanaswamy, 2014, arXiv:1402.1892.

    Args:
        probabilities: float32 [N]; positive: bool [N].
    """
    if positive.all() or not positive.any():
        return HALF
    order = np.argsort(-probabilities, kind="stable")
    ranked, hits = probabilities[order], np.cumsum(positive[order])
    last = np.append(ranked[1:] != ranked[:-1], True)  # images of equal probability are said to have it together
    f1 = np.where(last, 2 * hits / (np.arange(1, len(ranked) + 1) + hits[-1]), -1)
    return -between(-probabilities, -float(ranked[int(f1.argmax())]))


def fit_odds(probabilities: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Slope and offset of the log-odds that make the probabilities of one label most likely on val (Platt scaling: Platt, 1999,
    "Probabilistic outputs for support vector machines"). An offset is needed beside a temperature, because losses that weigh
    images with a label otherwise than those without shift all probabilities.

    The prior is weak: the logarithm of the slope is normal with standard deviation 1, the offset with `OFFSET`. Without it they
    would be infinite where the network is always right, or where val has no image with the label.

    Args:
        probabilities: of the network, float32 [N]; positive: bool [N].
    """
    from scipy.optimize import minimize

    odds = log_odds(probabilities)
    sign = np.where(positive, 1.0, -1.0)

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        slope = math.exp(at[0])
        margin = sign * (slope * odds + at[1])
        pull = -sign * expit(-margin)  # the slope of the loss of each image by its scaled log-odds
        prior = np.array([at[0], at[1] / OFFSET**2])
        value = float(np.logaddexp(0, -margin).sum() + (at[0] ** 2 + (at[1] / OFFSET) ** 2) / 2)
        return value, np.array([slope * (pull @ odds), pull.sum()]) + prior

    bounds = [(-math.log(FLATTEST), -math.log(SHARPEST)), (-MOST_OFFSET, MOST_OFFSET)]
    found = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=bounds)
    return math.exp(found.x[0]), float(found.x[1])


def scale_labels(probabilities: np.ndarray, slopes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Probabilities, float [N, K], whose log-odds are multiplied by slopes and moved by offsets, float [K]; float32 of the same
    shape."""
    return np.asarray(expit(log_odds(probabilities) * slopes + offsets), dtype=np.float32)


def log_odds(probabilities: np.ndarray) -> np.ndarray:
    """The log-odds of probabilities of any shape, float64; those of 0 and of 1 are finite."""
    p = np.minimum(np.asarray(probabilities, dtype=np.float64), 1 - SURE)
    return log_probabilities(p) - np.log1p(-p)


def as_one_class(raw: np.ndarray) -> np.ndarray:
    """What images are compared with those of val by, see `petriscope.trust.two_sample`: the most probable label as the class, and
    the mean over labels of how near each is to 1/2 as the uncertainty. Probabilities of labels, float [N, K] -> of classes that
    exclude one another, float32 [N, K]."""
    classes = raw.shape[1]
    doubt = np.minimum(raw, 1 - raw).mean(1, keepdims=True)
    out = np.repeat(doubt / max(classes - 1, 1), classes, axis=1)
    np.put_along_axis(out, raw.argmax(1)[:, None], 1 - doubt, axis=1)
    return out.astype(np.float32)


def in_one_mix(likeness: Likeness) -> Likeness:
    """What images of val are like, all of one class, so that images are compared with val as it is.

    To estimate their mix, as for one class per image, takes one class that an image has and one that is predicted, and the most
    probable label tells too little of the rarest one: see ``docs/log.md`` for the false alarms.
    """
    return replace(likeness, target=np.zeros_like(likeness.target))


def label_answers(
    reference: LabelReference,
    max_error: float,
    probabilities: np.ndarray,
    targets: np.ndarray,
    ood: np.ndarray | None,
    classes: tuple[str, ...],
    index: np.ndarray | None,
) -> list[LabelAnswers]:
    """How often labels of a split are answered at an error rate, and how often wrongly: two rows for each label.

    Args:
        probabilities: scaled, float32 [N, K]; targets: uint8 [N, K].
        index: groups of the images, int64 [N].
    """
    limits = reference.limits(max_error)
    given = answered_labels(probabilities, ood, reference.cutoffs, limits)
    present = probabilities >= reference.cutoffs
    rows = []
    for k, name in enumerate(classes):
        for answer, word in enumerate(ANSWERS):
            said = present[:, k] == answer
            these = said & given[:, k]
            wrong = targets[these, k] != answer
            span: Any = None
            if len(wrong):
                span = proportion95(wrong, None if index is None else index[these])
            rows.append(
                LabelAnswers(
                    name=name,
                    answer=word,
                    max_error=max_error,
                    guaranteed=bool(np.isfinite(limits[k, answer])),
                    said=int(said.sum()),
                    answered=int(these.sum()),
                    wrong=int(wrong.sum()),
                    error=float(wrong.mean()) if len(wrong) else None,
                    error_ci95=span if span is not None and math.isfinite(span[0]) else None,
                )
            )
    return rows
