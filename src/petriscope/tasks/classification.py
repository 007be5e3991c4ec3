"""Classification: one label per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from petriscope.core.errors import DataError
from petriscope.metrics.classification import full_metrics, quick_metrics, subset_metrics
from petriscope.metrics.intervals import group_index
from petriscope.metrics.passes import PassMetrics, judge_labels
from petriscope.metrics.statistics import METRICS, Sample, resample
from petriscope.tasks.base import Labeled, MetricInfo, PredictedBatches, Task, gather

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor


class Classification(Task):
    """Targets are class indices from 0, int64 [N]. What `collect` gives are probabilities, float32 [N, K]."""

    name = "classification"
    about = "labels"
    targets_are = "int64 [N]"
    dtype = "<i8"
    monitors = ("accuracy", "balanced_accuracy", "macro_f1", "loss")
    metrics = (
        MetricInfo("accuracy", "Accuracy", "share of images given their true class"),
        MetricInfo(
            "balanced_accuracy", "Balanced accuracy", "mean of the recalls per class: each class counts the same"
        ),
        MetricInfo("macro_precision", "Macro precision", "mean of the precisions per class"),
        MetricInfo("macro_f1", "Macro F1", "mean of the F1 scores per class"),
        MetricInfo("auc", "AUC", "area under the ROC curve, one class against the rest, mean; 0.5 is chance", False),
        MetricInfo("nll", "NLL", "negative log-likelihood of the true class; lower is better", False, False),
        MetricInfo("brier", "Brier score", "squared error of the probabilities, 0 to 2; lower is better", False, False),
        MetricInfo("ece", "ECE", "gap between confidence and accuracy, over 15 bins; lower is better", True, False),
    )
    compared = METRICS
    calibrates = True
    has_stress_test = True
    judges_subsets = True

    def accepts(self, targets: np.ndarray) -> bool:
        return targets.ndim == 1 and targets.dtype == np.int64

    def check(self, targets: np.ndarray, classes: Sequence[str], shape: tuple[int, int, int], ids: np.ndarray) -> None:
        if len(targets) and not 0 <= targets.min() <= targets.max() < len(classes):
            wrong = int(np.flatnonzero((targets < 0) | (targets >= len(classes)))[0])
            raise DataError(
                f"label {targets[wrong]} of image {ids[wrong]} is out of range: "
                f"there are {len(classes)} classes, counted from 0"
            )

    def amounts(self, targets: np.ndarray, classes: int) -> np.ndarray:
        return np.eye(classes, dtype=np.int64)[targets]

    def split_amounts(self, targets: np.ndarray, classes: int) -> np.ndarray:
        return np.eye(classes, dtype=np.uint8)[targets]

    def strata(self, targets: np.ndarray, classes: int) -> np.ndarray:
        return targets

    def counts(self, targets: np.ndarray, classes: int) -> np.ndarray:
        return np.bincount(targets, minlength=classes)

    def relabel(self, targets: np.ndarray, table: np.ndarray) -> np.ndarray:
        return table[targets]

    def hits(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        # Of a mixed image, the class that it has most of counts.
        labels = targets.argmax(1) if targets.is_floating_point() else targets
        return (logits.argmax(1) == labels).sum(), logits.new_full((), len(labels))

    def collect(self, batches: PredictedBatches, count: int, classes: int, full: bool = False) -> np.ndarray:
        return gather(batches)

    def quick(self, outputs: np.ndarray, images: Labeled) -> dict[str, float]:
        return quick_metrics(outputs, images.targets)

    def score(self, outputs: np.ndarray, images: Labeled) -> float:
        """Accuracy."""
        return float((outputs.argmax(1) == images.targets).mean())

    def judge(self, outputs: np.ndarray, images: Labeled, resamples: int) -> dict[str, Any]:
        return full_metrics(outputs, images.targets, images.classes, resamples, index=group_index(images.groups))

    def judge_subset(
        self, outputs: np.ndarray, images: Labeled, rows: np.ndarray, groups: np.ndarray | None, resamples: int
    ) -> dict[str, Any]:
        """Accuracy with its interval, balanced accuracy and macro F1."""
        return subset_metrics(outputs[rows], images.targets[rows], group_index(groups))

    def table(self, outputs: np.ndarray, images: Labeled, split: str) -> pd.DataFrame:
        """id, split, group (if there are groups), target, predicted, confidence, and one probability per class
        (``p_<class>``)."""
        import pandas as pd

        names = np.array(images.classes)
        predicted = outputs.argmax(1)
        columns: dict[str, Any] = {
            "id": images.ids.astype(object),
            "split": split,
            **({} if images.groups is None else {"group": images.groups.astype(object)}),
            "target": names[images.targets].astype(object),
            "predicted": names[predicted].astype(object),
            "confidence": outputs.max(1),
        }
        return pd.DataFrame({**columns, **{f"p_{name}": outputs[:, k] for k, name in enumerate(names)}})

    def compares(self, column: str) -> bool:
        return not column.startswith("p_")

    def sample(self, tables: Sequence[Mapping[str, np.ndarray]], metric: str) -> Sample:
        names = sorted({str(name) for table in tables for key in ("target", "predicted") for name in set(table[key])})
        codes = {name: code for code, name in enumerate(names)}
        predicted = np.array([[codes[str(name)] for name in table["predicted"]] for table in tables])
        targets = np.array([codes[str(name)] for name in tables[0]["target"]])
        # Runs of older versions do not say what groups their images are in.
        groups = next((table["group"].astype(str) for table in tables if "group" in table), None)
        return resample(predicted, targets, len(names), metric, index=group_index(groups))

    def mark(self, predicted: np.ndarray, targets: np.ndarray, classes: int) -> np.ndarray:
        """Whether each image is right, bool [B]."""
        return predicted == targets

    def judge_passes(self, marks: np.ndarray, images: Labeled, resamples: int) -> PassMetrics:
        return judge_labels(marks, images.targets, len(images.classes), resamples, group_index(images.groups))
