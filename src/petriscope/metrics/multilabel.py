"""Metrics of images that have any number of labels: ranking, decisions and probabilities, per class and over all labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from petriscope.metrics.classification import calibration_error, weighted_auc
from petriscope.metrics.intervals import bootstrap_weights, count_groups, percentile95, proportion95, size_groups
from petriscope.metrics.passes import PassMetrics, Share

RANKED = ("map", "auc")  # metrics that need no decisions; each is a mean over classes
CLASS_METRICS = {"map": "ap", "auc": "auc", "macro_f1": "f1"}  # the mean over classes, and the metric of one
SURE = 2.0**-24  # a probability of 1 in float32 counts as this much less, so that its logarithm is a number
TINY = 1e-38


def average_precision(score: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision for each row of weights, [R, N] -> [R]; NaN without positives. It is the sum of the precisions at the
    scores of positives, each weighted with the recall gained there (without interpolation, as in scikit-learn).

    Args:
        score: float [N]; images of equal score are found together.
        positive: bool [N].
    """
    order = np.argsort(-score, kind="stable")
    ranked, hit = score[order], positive[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    # Only scores that a positive has matter: the recall does not change at the others.
    ends = ends[np.diff(np.cumsum(hit)[ends], prepend=0) > 0]
    drawn = weights[:, order]
    found = np.cumsum(drawn * hit, 1)
    total = found[:, -1]
    found, every = found[:, ends], np.cumsum(drawn, 1)[:, ends]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(every > 0, found / every, 0)
        return (np.diff(found, axis=1, prepend=0) * precision).sum(1) / np.where(total > 0, total, np.nan)


def ranking_precision_each(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Label ranking average precision of each image, float64 [N]: for each label that it has, the share of labels that it has
    among those ranked at least as high; the mean over its labels. 1 for an image that has no label, or all of them.
    Tsoumakas, Katakis and Vlahavas, 2010, "Mining Multi-label Data".

    Args:
        probabilities: float [N, K]; targets: [N, K], 0 or 1.
    """
    has = targets.astype(bool)
    total = np.zeros(len(targets))
    for k in range(targets.shape[1]):
        above = probabilities >= probabilities[:, k : k + 1]
        total += np.where(has[:, k], (above & has).sum(1) / above.sum(1), 0)
    count = has.sum(1)
    return np.where((count == 0) | (count == has.shape[1]), 1.0, total / np.maximum(count, 1))


def label_loss_each(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Binary cross-entropy of each image, the mean over its K labels, float64 [N]."""
    p = np.asarray(probabilities, dtype=np.float64)
    return -np.log(np.where(targets.astype(bool), np.maximum(p, TINY), np.maximum(1 - p, SURE))).mean(1)


def quick_label_metrics(probabilities: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """map, auc and loss, for every epoch of training."""
    one = np.ones((1, len(targets)))
    ranked = _ranked(probabilities, targets.astype(bool), one)
    return {key: float(_mean(ranked[key])[0]) for key in RANKED} | {
        "loss": float(label_loss_each(probabilities, targets).mean())
    }


def full_label_metrics(
    probabilities: np.ndarray,
    targets: np.ndarray,
    decided: np.ndarray,
    classes: Sequence[str],
    resamples: int,
    index: np.ndarray | None = None,
    facts: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """All metrics of an evaluation.

    Means over classes leave out the classes that no image has (and, for the AUC, those that all have), in the whole set and
    in each resample of the bootstrap.

    Args:
        probabilities: of each label, float [N, K].
        targets: uint8 [N, K], 1 where an image has a label.
        decided: which labels each image is said to have, bool [N, K].
        classes: K names.
        resamples: of the bootstrap over images, or over groups.
        index: groups of the images, int64 [N], as `petriscope.metrics.intervals.group_index` has them; None: images are
            independent.
        facts: more values of each class, float [K], by name.

    Returns:
        as `petriscope.tasks.base.Task.judge` has it: n; groups; map, auc, macro_f1, exact_match, lrap, label_accuracy and
        nll with their intervals; ece; ``undefined``; and per class n (images that have it), ap, auc and f1 with intervals,
        precision, recall and ece.
    """
    n, positive = len(targets), targets.astype(bool)
    right = decided == positive
    each = {
        "exact_match": right.all(1).astype(float),
        "lrap": ranking_precision_each(probabilities, targets),
        "label_accuracy": right.mean(1),
        "nll": label_loss_each(probabilities, targets),
    }
    plain = _per_class(probabilities, positive, decided, np.ones((1, n)))
    parts = []
    for weights in bootstrap_weights(n, resamples, index=index):
        shares = weights / weights.sum(1, keepdims=True)
        parts.append(
            (
                _per_class(probabilities, positive, decided, weights),
                {key: shares @ values for key, values in each.items()},
            )
        )
    empty = np.empty((0, len(classes)))
    drawn = {key: np.concatenate([empty, *(part[key] for part, _ in parts)]) for key in plain}
    out: dict[str, Any] = {"n": n} | ({} if index is None else size_groups(index))
    undefined = {}
    for mean, key in CLASS_METRICS.items():
        value = _number(_mean(plain[key])[0])
        out[mean] = value
        out[f"{mean}_ci95"] = _span(percentile95(_mean(drawn[key])))
        if value is None:
            undefined[mean] = "no image has a label" if not positive.any() else "every image has the same labels"
    for key, values in each.items():
        spread = np.concatenate([np.empty(0), *(part[key] for _, part in parts)])
        binary = key == "exact_match"
        out[key] = float(values.mean())
        out[f"{key}_ci95"] = _span(proportion95(values, index) if binary else percentile95(spread))
    errors = _calibration_errors(probabilities, positive)
    out["ece"] = float(np.mean(errors))
    counts = _counts(positive, decided, np.ones((1, n)))
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = {"precision": counts["hits"][0] / counts["said"][0], "recall": counts["hits"][0] / counts["true"][0]}
    out["per_class"] = {
        name: {
            "n": int(positive[:, k].sum()),
            **{key: _number(values[0, k]) for key, values in plain.items()},
            **{f"{key}_ci95": _span(percentile95(drawn[key][:, k])) for key in plain},
            **{key: _number(values[k]) for key, values in rates.items()},
            "ece": float(errors[k]),
            **{key: _number(values[k]) for key, values in (facts or {}).items()},
        }
        for k, name in enumerate(classes)
    }
    return out | ({"undefined": undefined} if undefined else {})


def label_calibration_errors(probabilities: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """``ece``, the mean over classes, and ``nll``, as `full_label_metrics` has them."""
    errors = _calibration_errors(probabilities, targets == 1)
    return {"ece": float(np.mean(errors)), "nll": float(label_loss_each(probabilities, targets).mean())}


def _calibration_errors(probabilities: np.ndarray, positive: np.ndarray) -> list[float]:
    """Of each class."""
    return [calibration_error(probabilities[:, k], positive[:, k]) for k in range(positive.shape[1])]


def label_subset_metrics(
    probabilities: np.ndarray, targets: np.ndarray, decided: np.ndarray, resamples: int, index: np.ndarray | None
) -> dict[str, Any]:
    """A few metrics of some of the images: n; groups (with ``index``); map with its interval, macro_f1 and exact_match."""
    n, positive = len(targets), targets.astype(bool)
    plain = _per_class(probabilities, positive, decided, np.ones((1, n)))
    drawn = [
        _mean(_ranked(probabilities, positive, weights)["map"])
        for weights in bootstrap_weights(n, resamples, index=index)
    ]
    return {
        "n": n,
        **({} if index is None else {"groups": count_groups(index)}),
        "map": _number(_mean(plain["ap"])[0]),
        "map_ci95": _span(percentile95(np.concatenate([np.empty(0), *drawn]))),
        "macro_f1": _number(_mean(plain["f1"])[0]),
        "exact_match": float((decided == positive).all(1).mean()),
    }


def label_draws(
    metric: str, probabilities: np.ndarray, targets: np.ndarray, decided: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """A metric of one network for each row of weights, [R, N] -> [R].

    Args:
        metric: map, auc, macro_f1, exact_match, lrap or label_accuracy.
    """
    positive = targets.astype(bool)
    if metric in RANKED:
        return _mean(_ranked(probabilities, positive, weights)[metric])
    if metric == "macro_f1":
        return _mean(_f1(_counts(positive, decided, weights)))
    right = decided == positive
    each = {
        "exact_match": lambda: right.all(1),
        "label_accuracy": lambda: right.mean(1),
        "lrap": lambda: ranking_precision_each(probabilities, targets),
    }[metric]().astype(float)
    return weights @ each / weights.sum(1)


def judge_label_passes(
    passes: np.ndarray, targets: np.ndarray, resamples: int, index: np.ndarray | None = None
) -> PassMetrics:
    """Mean average precision of P passes over the same N images, and the share of labels that are right at 0.5.

    Args:
        passes: probabilities, float [P, N, K].
        targets: uint8 [N, K].
        index: groups of the images, which the bootstrap draws, int64 [N]; None: it draws images.
    """
    n, positive = len(targets), targets.astype(bool)
    values = np.array([_mean(_ranked(p, positive, np.ones((1, n)), ("map",))["map"])[0] for p in passes])
    drawn, spread = [np.empty((0, len(passes)))], [np.empty((0, len(passes)))]
    right = ((passes >= 0.5) == positive).mean(2)
    for weights in bootstrap_weights(n, resamples, index=index):
        ranked = [_mean(_ranked(p, positive, weights, ("map",))["map"]) for p in passes]
        drawn.append(np.stack(ranked, 1))
        spread.append(weights @ right.T / weights.sum(1, keepdims=True))
    accuracy = [
        Share(float(value), percentile95(column))
        for value, column in zip(right.mean(1), np.concatenate(spread).T, strict=True)
    ]
    groups = None if index is None else count_groups(index)
    return PassMetrics("map", "label_accuracy", values, np.concatenate(drawn), accuracy, n, groups)


def _per_class(
    probabilities: np.ndarray, positive: np.ndarray, decided: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """ap, auc and f1 of each class for each row of weights, [R, N] -> [R, K]; NaN where undefined."""
    ranked = _ranked(probabilities, positive, weights)
    return {"ap": ranked["map"], "auc": ranked["auc"], "f1": _f1(_counts(positive, decided, weights))}


def _ranked(
    probabilities: np.ndarray, positive: np.ndarray, weights: np.ndarray, wanted: Sequence[str] = RANKED
) -> dict[str, np.ndarray]:
    """Of each class, [R, N] -> [R, K]."""
    measures = {"map": average_precision, "auc": weighted_auc}
    columns = range(positive.shape[1])
    return {
        key: np.stack([measures[key](probabilities[:, k], positive[:, k], weights) for k in columns], 1)
        for key in wanted
    }


def _counts(positive: np.ndarray, decided: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Per class, how many images have it, are said to have it, and both, for each row of weights, [R, K]."""
    arrays = {"true": positive, "said": decided, "hits": positive & decided}
    return {key: weights @ values.astype(float) for key, values in arrays.items()}


def _f1(counts: Mapping[str, np.ndarray]) -> np.ndarray:
    """[R, K]; NaN for a class that no image has."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(counts["true"] > 0, 2 * counts["hits"] / (counts["true"] + counts["said"]), np.nan)


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean over the classes where it is defined, [R, K] -> [R]."""
    defined = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(defined, values, 0).sum(1) / defined.sum(1)


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _span(ends: tuple[float, float]) -> list[float | None]:
    return [_number(end) for end in ends]
