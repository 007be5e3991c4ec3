"""Classification metrics from probabilities and targets, with 95 % intervals.

The bootstrap computes each metric for all resamples at once, from sums over classes, so that it takes memory proportional
to images and classes. The tests compare the metrics with those of scikit-learn and torchmetrics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from petriscope.metrics.blocks import row_blocks
from petriscope.metrics.intervals import bootstrap_weights, count_groups, percentile95, proportion95, size_groups

BINS = 15  # of confidence, for the calibration error; as in Guo et al., 2017, arXiv:1706.04599
FLOOR = 1e-12  # lowest probability that a logarithm is taken of
MOST_RANKED = 2**20  # images times classes; of more, the AUC is not ranked again in every resample


def quick_metrics(probabilities: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """The metrics computed after every epoch: accuracy, balanced accuracy, macro F1, loss (mean negative log-likelihood).

    Args:
        probabilities: float [N, K].
        targets: int64 [N].
    """
    classes = probabilities.shape[1]
    counted = ClassCounts(targets, probabilities.argmax(1), classes)(np.ones((1, len(targets))))
    metrics = {key: float(value[0]) for key, value in from_counts(*counted).items()}
    return {**metrics, "loss": float(nll_each(probabilities, targets).mean())}


def confusion_matrix(targets: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Number of images by true class (rows) and predicted class (columns), int64 [K, K]."""
    return np.bincount(targets * classes + predicted, minlength=classes * classes).reshape(classes, classes)


class ClassCounts:
    """Images per class under many weightings of the images, for the bootstrap.

    Args:
        targets, predicted: int64 [N].
        classes: K.
    """

    def __init__(self, targets: np.ndarray, predicted: np.ndarray, classes: int) -> None:
        every, right = np.arange(len(targets)), np.flatnonzero(targets == predicted)
        self.classes = classes
        self.parts = [self._runs(targets, every), self._runs(predicted, every), self._runs(targets[right], right)]

    def __call__(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights of the images, [R, N] -> true, predicted and rightly predicted images, each float64 [R, K]."""
        true, guessed, hits = (np.zeros((len(weights), self.classes)) for _ in self.parts)
        for out, (rows, cells, starts) in zip((true, guessed, hits), self.parts, strict=True):
            if len(rows):
                out[:, cells] = np.add.reduceat(weights[:, rows], starts, axis=1)
        return true, guessed, hits

    @staticmethod
    def _runs(labels: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The images in order of their labels, the labels that there are, and where the images of each begin."""
        order = np.argsort(labels, kind="stable")
        return rows[order], *np.unique(labels[order], return_index=True)


def nll_each(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Negative log-likelihood of each image's true class, in nats, [N]."""
    return -np.log(np.maximum(probabilities[np.arange(len(targets)), targets], FLOOR))


def from_counts(true: np.ndarray, predicted: np.ndarray, hits: np.ndarray) -> dict[str, np.ndarray]:
    """Accuracy, balanced accuracy and macro F1 from `ClassCounts`, [R, K]; each is an array [R].

    Means are over the classes that occur in the targets.
    """
    there = true > 0
    recall = hits / np.maximum(true, 1e-12)
    f1 = 2 * hits / np.maximum(true + predicted, 1e-12)
    present = np.maximum(there.sum(1), 1)
    return {
        "accuracy": hits.sum(1) / np.maximum(true.sum(1), 1e-12),
        "balanced_accuracy": (recall * there).sum(1) / present,
        "macro_f1": (f1 * there).sum(1) / present,
    }


def calibration_bins(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> dict[str, np.ndarray]:
    """Bin images by confidence, with bins of equal width: ``count``, mean ``confidence`` and ``accuracy``, each [bins]."""
    return bin_means(_bin_index(confidence, bins), confidence, correct, bins)


def bin_spans(
    confidence: np.ndarray, correct: np.ndarray, index: np.ndarray | None = None
) -> list[tuple[float, float]]:
    """The 95 % interval of the accuracy in each bin of `calibration_bins`.

    Args:
        index: groups of the images, int64 [N]; None: images are independent.
    """
    bins = _bin_index(confidence, BINS)
    members = (bins == each for each in range(BINS))
    return [proportion95(correct[m], None if index is None else index[m]) for m in members]


def bin_means(index: np.ndarray, confidence: np.ndarray, correct: np.ndarray, bins: int) -> dict[str, np.ndarray]:
    """``count``, mean ``confidence`` and ``accuracy`` per bin, each [bins]; 0 in empty bins. ``index``: int [N], the bins."""
    count = np.bincount(index, minlength=bins)
    some = np.maximum(count, 1)
    return {
        "count": count,
        "confidence": np.bincount(index, confidence, minlength=bins) / some,
        "accuracy": np.bincount(index, correct, minlength=bins) / some,
    }


def _bin_index(confidence: np.ndarray, bins: int) -> np.ndarray:
    return np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: the absolute difference between accuracy and confidence, averaged over bins weighted by
    their counts."""
    table = calibration_bins(confidence, correct, bins)
    return float((table["count"] * np.abs(table["accuracy"] - table["confidence"])).sum() / len(confidence))


def calibration_error_if_calibrated(
    confidence: np.ndarray, resamples: int = 1000, seed: int = 0, chunk_bytes: int = 2**26
) -> tuple[float, float]:
    """The range in which `calibration_error` of these images is 95 times in 100 if each confidence is the probability that
    the prediction is right: outcomes are drawn from the confidences, as in consistency resampling (Bröcker and Smith, 2007,
    Weather and Forecasting 22:651; for networks, Vaicenavicius et al., 2019, arXiv:1902.06977).

    The error of few images is above 0 even then, and that of a bootstrap resample is higher still, so that percentiles of
    the bootstrap are no interval of it.
    """
    rng, n = np.random.default_rng(seed), len(confidence)
    bins = np.eye(BINS)[_bin_index(confidence, BINS)]
    rows = max(1, chunk_bytes // (8 * n))
    drawn = [
        np.abs(((rng.random((min(rows, resamples - start), n)) < confidence) - confidence) @ bins).sum(1) / n
        for start in range(0, resamples, rows)
    ]
    return percentile95(np.concatenate(drawn))


def full_metrics(
    probabilities: np.ndarray,
    targets: np.ndarray,
    classes: tuple[str, ...],
    resamples: int = 1000,
    seed: int = 0,
    index: np.ndarray | None = None,
) -> dict[str, Any]:
    """All metrics of an evaluation, with 95 % intervals: Wilson's for accuracy and recall, the bootstrap for the others.

    Args:
        probabilities: float [N, K]; rows sum to 1.
        targets: int64 [N].
        classes: K names.
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        index: groups of the images, int64 [N], as `petriscope.metrics.intervals.group_index` has them; None: images are
            independent.

    Returns:
        n; groups and largest_group (with ``index``); accuracy, balanced_accuracy, macro_precision, macro_recall, macro_f1,
        auc (one-vs-rest, macro), nll, brier, each with ``<name>_ci95`` [low, high]; ece, and, without ``index``,
        ece_if_calibrated [low, high] (see `calibration_error_if_calibrated`); per_class (a mapping for each class); confusion
        (true by predicted). Means are over the classes that occur. A metric that is undefined, such as the AUC of a single
        class or the recall of a class without images, is None, and so are the ends of an interval of images that are one
        group; ``undefined`` says why.
    """
    from sklearn.metrics import precision_recall_fscore_support

    n, count = probabilities.shape
    sums, predicted, confidence, nll, brier = _each(probabilities, targets)
    correct = (predicted == targets).astype(float)
    confusion = confusion_matrix(targets, predicted, count)
    precision, recall, f1, support = precision_recall_fscore_support(
        targets, predicted, labels=np.arange(count), zero_division=0.0
    )
    there = support > 0
    aucs = class_aucs(probabilities, targets, sums)
    values = {
        "accuracy": float(correct.mean()),
        "balanced_accuracy": float(recall[there].mean()),
        "macro_precision": float(precision[there].mean()),
        "macro_recall": float(recall[there].mean()),
        "macro_f1": float(f1[there].mean()),
        "auc": _mean(aucs[there]),
        "nll": float(nll.mean()),
        "brier": float(brier.mean()),
    }
    weights = bootstrap_weights(n, resamples, seed, index=index)
    counts, auc = ClassCounts(targets, predicted, count), _auc_drawn(probabilities, targets, sums)
    parts = [_drawn(each, counts, auc, nll, brier) for each in weights]
    draws = {key: np.concatenate([np.empty(0), *(part[key] for part in parts)]) for key in values}
    out: dict[str, Any] = {"n": n, **({} if index is None else size_groups(index))}
    for key, value in values.items():
        out[key] = value
        low, high = proportion95(correct, index) if key == "accuracy" else percentile95(draws[key])
        out[f"{key}_ci95"] = [_number(low), _number(high)]
    out["ece"] = calibration_error(confidence, correct)
    if index is None:
        out["ece_if_calibrated"] = list(calibration_error_if_calibrated(confidence, resamples, seed))
    undefined = {"auc": "all images are of one class"} if values["auc"] is None else {}
    if n == 1 or out.get("groups") == 1:
        undefined["ci95"] = f"there is one {'image' if n == 1 else 'group of images'}"
    if undefined:
        out["undefined"] = undefined
    members = [np.flatnonzero(targets == k) for k in range(count)]
    spans = [proportion95(correct[rows], None if index is None else index[rows]) for rows in members]
    out["per_class"] = {
        name: {
            "n": int(support[k]),
            "precision": float(precision[k]),
            "recall": float(recall[k]) if there[k] else None,
            "recall_ci95": [_number(end) if there[k] else None for end in spans[k]],
            "f1": float(f1[k]),
            "auc": _number(aucs[k]),
        }
        for k, name in enumerate(classes)
    }
    out["confusion"] = confusion.tolist()
    return out


def subset_metrics(probabilities: np.ndarray, targets: np.ndarray, index: np.ndarray | None = None) -> dict[str, Any]:
    """A few metrics of some of the images of an evaluation: n; groups (with ``index``); accuracy and ``accuracy_ci95``, as
    `full_metrics` has them; balanced_accuracy and macro_f1.

    Args:
        probabilities, targets, index: as for `full_metrics`.
    """
    predicted, n = probabilities.argmax(1), len(targets)
    counted = ClassCounts(targets, predicted, probabilities.shape[1])(np.ones((1, n)))
    spans = proportion95((predicted == targets).astype(float), index)
    values = {key: float(value[0]) for key, value in from_counts(*counted).items()}
    groups = {} if index is None else {"groups": count_groups(index)}
    return {"n": n, **groups, **values, "accuracy_ci95": [_number(end) for end in spans]}


def _each(
    probabilities: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Per image, from probabilities in float64 that sum to 1: what they summed to, the predicted class, its probability,
    the negative log-likelihood, and the Brier score; each [N]."""
    n, classes = probabilities.shape
    sums, confidence, nll, brier = np.empty((4, n))
    predicted = np.empty(n, dtype=np.int64)
    for rows in row_blocks(n, 8 * classes):
        p = np.asarray(probabilities[rows], dtype=np.float64)
        sums[rows] = p.sum(1)
        p = p / sums[rows, None]
        predicted[rows], confidence[rows] = p.argmax(1), p.max(1)
        nll[rows], brier[rows] = nll_each(p, targets[rows]), brier_each(p, targets[rows])
    return sums, predicted, confidence, nll, brier


def brier_each(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The squared error of each image's probabilities, 0 to 2, [N]."""
    return ((probabilities - (targets[:, None] == np.arange(probabilities.shape[1]))) ** 2).sum(1)


def class_aucs(probabilities: np.ndarray, targets: np.ndarray, sums: np.ndarray | float = 1.0) -> np.ndarray:
    """One-vs-rest area under the ROC curve per class, [K]; NaN where it is undefined.

    Args:
        sums: what the probabilities of each image are divided by, float64 [N].
    """
    weights = np.ones((1, len(targets)))
    return np.array(
        [weighted_auc(probabilities[:, k] / sums, targets == k, weights)[0] for k in range(probabilities.shape[1])]
    )


def weighted_auc(score: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve for each row of weights, [R, N] -> [R]: the probability that a positive scores higher than a
    negative, where ties count one half.

    Weights are whole numbers. Each positive counts all that it scores higher than, and the positives among these, which are
    half of the pairs of positives, are subtracted.
    """
    order = np.argsort(score, kind="stable")
    ranked, places = score[order], np.flatnonzero(positive[order])
    first, last = (np.searchsorted(ranked, ranked[places], side) for side in ("left", "right"))
    reached = np.cumsum(weights[:, order], 1)
    total = reached[:, -1]
    below = np.where(first > 0, reached[:, first - 1], 0) + reached[:, last - 1]
    own = weights[:, order[places]]
    plus = own.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((own * below).sum(1) - plus**2) / 2 / (plus * (total - plus))


def _auc_drawn(probabilities: np.ndarray, targets: np.ndarray, sums: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The mean AUC over classes for each row of weights, [R, N] -> [R].

    Of many images and classes, it is linear in the weights: the AUC, and the influence of each image on it (Hampel, 1974,
    Journal of the American Statistical Association 69:383), which is made of DeLong's placements (DeLong et al., 1988,
    Biometrics 44:837). To rank all images again for every class and resample would take hours.
    """
    n, classes = probabilities.shape

    def ranked(weights: np.ndarray) -> np.ndarray:
        aucs = [weighted_auc(probabilities[:, k] / sums, targets == k, weights) for k in range(classes)]
        drawn = np.stack(aucs, 1)
        defined = np.isfinite(drawn)
        with np.errstate(invalid="ignore"):
            return np.where(defined, drawn, 0).sum(1) / defined.sum(1)

    if n * classes <= MOST_RANKED:
        return ranked
    there = np.unique(targets)
    auc, influence = (0.0 if len(there) > 1 else np.nan), np.zeros(n)
    for k in there if len(there) > 1 else ():
        value, each = auc_influence(probabilities[:, k] / sums, targets == k)
        auc += value / len(there)
        influence += each / len(there)
    return lambda weights: auc + weights @ influence


def auc_influence(score: np.ndarray, positive: np.ndarray) -> tuple[float, np.ndarray]:
    """The area under the ROC curve, and its derivative by the weight of each image, [N]; there must be both positives and
    negatives."""
    order = np.argsort(score, kind="stable")
    ranked = score[order]
    first = np.r_[True, ranked[1:] != ranked[:-1]]
    tie = np.cumsum(first) - 1
    plus, minus = (np.bincount(tie, kind) for kind in (positive[order], ~positive[order]))
    positives, negatives = plus.sum(), minus.sum()
    below = (np.cumsum(minus) - minus / 2) / negatives  # the share of the negatives that a positive there is above
    above = 1 - (np.cumsum(plus) - plus / 2) / positives
    auc = float((plus * below).sum() / positives)
    influence = np.empty(len(score))
    influence[order] = np.where(positive[order], (below[tie] - auc) / positives, (above[tie] - auc) / negatives)
    return auc, influence


def _drawn(
    weights: np.ndarray,
    counts: ClassCounts,
    auc: Callable[[np.ndarray], np.ndarray],
    nll: np.ndarray,
    brier: np.ndarray,
) -> dict[str, np.ndarray]:
    """Each metric in R resamples, [R].

    Args:
        weights: of the images, float64 [R, N].
        nll, brier: of each image, [N].
    """
    true, guessed, hits = counts(weights)
    metrics = from_counts(true, guessed, hits)
    there, drawn = true > 0, weights.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(there & (guessed > 0), hits / guessed, 0).sum(1) / there.sum(1)
    return {
        **metrics,
        "macro_recall": metrics["balanced_accuracy"],
        "macro_precision": precision,
        "auc": auc(weights),
        "nll": weights @ nll / drawn,
        "brier": weights @ brier / drawn,
    }


def _mean(values: np.ndarray) -> float | None:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
