"""Classification metrics from probabilities and targets, with 95 % intervals.

The bootstrap computes each metric for all resamples at once. The tests compare the metrics with those of scikit-learn and
torchmetrics.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from petriscope.metrics.intervals import bootstrap_weights, percentile95, wilson

BINS = 15  # of confidence, for the calibration error; as in Guo et al., 2017, arXiv:1706.04599
FLOOR = 1e-12  # lowest probability that a logarithm is taken of


def quick_metrics(probabilities: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """The metrics computed after every epoch: accuracy, balanced accuracy, macro F1, loss (mean negative log-likelihood).

    Args:
        probabilities: float [N, K].
        targets: int64 [N].
    """
    classes = probabilities.shape[1]
    confusion = confusion_matrix(targets, probabilities.argmax(1), classes)
    metrics = {key: float(value[0]) for key, value in from_confusion(confusion[None]).items()}
    return {**metrics, "loss": float(nll_each(probabilities, targets).mean())}


def confusion_matrix(targets: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Number of images by true class (rows) and predicted class (columns), int64 [K, K]."""
    return np.bincount(targets * classes + predicted, minlength=classes * classes).reshape(classes, classes)


class WeightedConfusion:
    """Confusion matrices of one network under many weightings of the images, for the bootstrap.

    Args:
        targets, predicted: int64 [N].
        classes: K.
    """

    def __init__(self, targets: np.ndarray, predicted: np.ndarray, classes: int) -> None:
        codes = targets * classes + predicted
        self.order = np.argsort(codes, kind="stable")  # sum over runs of equal codes, because most cells are empty
        self.cells, self.starts = np.unique(codes[self.order], return_index=True)
        self.classes = classes

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """Weights of the images, [R, N] -> confusion matrices, true by predicted class, float64 [R, K, K]."""
        out = np.zeros((len(weights), self.classes**2))
        out[:, self.cells] = np.add.reduceat(weights[:, self.order], self.starts, axis=1)
        return out.reshape(-1, self.classes, self.classes)


def nll_each(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Negative log-likelihood of each image's true class, in nats, [N]."""
    return -np.log(np.maximum(probabilities[np.arange(len(targets)), targets], FLOOR))


def from_confusion(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Accuracy, balanced accuracy and macro F1 of R confusion matrices, [R, K, K]; each is an array [R].

    Means are over the classes that occur in the targets.
    """
    hits = np.diagonal(confusion, axis1=1, axis2=2).astype(float)
    true, predicted = confusion.sum(2), confusion.sum(1)
    there = true > 0
    recall = hits / np.maximum(true, 1e-12)
    f1 = 2 * hits / np.maximum(true + predicted, 1e-12)
    present = np.maximum(there.sum(1), 1)
    return {
        "accuracy": hits.sum(1) / np.maximum(confusion.sum((1, 2)), 1e-12),
        "balanced_accuracy": (recall * there).sum(1) / present,
        "macro_f1": (f1 * there).sum(1) / present,
    }


def calibration_bins(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> dict[str, np.ndarray]:
    """Bin images by confidence, with bins of equal width: ``count``, mean ``confidence`` and ``accuracy``, each [bins]."""
    return bin_means(_bin_index(confidence, bins), confidence, correct, bins)


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


def full_metrics(
    probabilities: np.ndarray, targets: np.ndarray, classes: tuple[str, ...], resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """All metrics of an evaluation, with 95 % intervals: Wilson's for accuracy and recall, the bootstrap for the others.

    Args:
        probabilities: float [N, K]; rows sum to 1.
        targets: int64 [N].
        classes: K names.
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.

    Returns:
        n; accuracy, balanced_accuracy, macro_precision, macro_recall, macro_f1, auc (one-vs-rest, macro), nll, brier,
        ece, each with ``<name>_ci95`` [low, high]; per_class (a mapping for each class); confusion (true by predicted).
        Means are over the classes that occur. A metric that is undefined, such as the AUC of a single class, is None.
    """
    from sklearn.metrics import precision_recall_fscore_support

    probabilities = np.asarray(probabilities, dtype=np.float64)
    probabilities = probabilities / probabilities.sum(1, keepdims=True)
    n, count = probabilities.shape
    predicted = probabilities.argmax(1)
    correct = (predicted == targets).astype(float)
    confusion = confusion_matrix(targets, predicted, count)
    precision, recall, f1, support = precision_recall_fscore_support(
        targets, predicted, labels=np.arange(count), zero_division=0.0
    )
    there = support > 0
    aucs = class_aucs(probabilities, targets)
    nll = nll_each(probabilities, targets)
    brier = ((probabilities - np.eye(count)[targets]) ** 2).sum(1)
    values = {
        "accuracy": float(correct.mean()),
        "balanced_accuracy": float(recall[there].mean()),
        "macro_precision": float(precision[there].mean()),
        "macro_recall": float(recall[there].mean()),
        "macro_f1": float(f1[there].mean()),
        "auc": _mean(aucs[there]),
        "nll": float(nll.mean()),
        "brier": float(brier.mean()),
        "ece": calibration_error(probabilities.max(1), correct),
    }
    draws = _bootstrap(probabilities, targets, nll, brier, resamples, seed)
    out: dict[str, Any] = {"n": n}
    for key, value in values.items():
        out[key] = value
        low, high = wilson(float(correct.sum()), n) if key == "accuracy" else percentile95(draws[key])
        out[f"{key}_ci95"] = [_number(low), _number(high)]
    out["per_class"] = {
        name: {
            "n": int(support[k]),
            "precision": float(precision[k]),
            "recall": float(recall[k]),
            "recall_ci95": list(wilson(float(confusion[k, k]), int(support[k]))),
            "f1": float(f1[k]),
            "auc": _number(aucs[k]),
        }
        for k, name in enumerate(classes)
    }
    out["confusion"] = confusion.tolist()
    return out


def class_aucs(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """One-vs-rest area under the ROC curve per class, [K]; NaN where it is undefined."""
    weights = np.ones((1, len(targets)))
    return np.array(
        [_weighted_auc(probabilities[:, k], targets == k, weights)[0] for k in range(probabilities.shape[1])]
    )


def _weighted_auc(score: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve for each row of weights, [R, N] -> [R]: the probability that a positive scores higher than a
    negative, where ties count one half."""
    order = np.argsort(score, kind="stable")
    ranked, weights = score[order], weights[:, order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])  # one group per distinct score
    plus = np.add.reduceat(weights * positive[order], starts, axis=1)
    minus = np.add.reduceat(weights * ~positive[order], starts, axis=1)
    below = np.cumsum(minus, 1) - minus
    with np.errstate(invalid="ignore", divide="ignore"):
        return (plus * (below + minus / 2)).sum(1) / (plus.sum(1) * minus.sum(1))


def _bootstrap(
    probabilities: np.ndarray, targets: np.ndarray, nll: np.ndarray, brier: np.ndarray, resamples: int, seed: int
) -> dict[str, np.ndarray]:
    """Each metric in every resample, [resamples]."""
    n, classes = probabilities.shape
    predicted = probabilities.argmax(1)
    confidence, correct = probabilities.max(1), (predicted == targets).astype(float)
    confused = WeightedConfusion(targets, predicted, classes)
    bins = np.eye(BINS)[_bin_index(confidence, BINS)]
    parts: list[dict[str, np.ndarray]] = []
    for weights in bootstrap_weights(n, resamples, seed):
        confusion = confused(weights)
        metrics = from_confusion(confusion)
        hits, guessed = np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(1)
        there = confusion.sum(2) > 0
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = np.where(there & (guessed > 0), hits / guessed, 0).sum(1) / there.sum(1)
        aucs = np.stack([_weighted_auc(probabilities[:, k], targets == k, weights) for k in range(classes)], 1)
        defined = np.isfinite(aucs)
        with np.errstate(invalid="ignore"):
            auc = np.where(defined, aucs, 0).sum(1) / defined.sum(1)
        gap = (weights * (correct - confidence)) @ bins
        parts.append(
            {
                **metrics,
                "macro_recall": metrics["balanced_accuracy"],
                "macro_precision": precision,
                "auc": auc,
                "nll": weights @ nll / n,
                "brier": weights @ brier / n,
                "ece": np.abs(gap).sum(1) / n,
            }
        )
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _mean(values: np.ndarray) -> float | None:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
