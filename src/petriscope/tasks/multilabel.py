"""Multilabel classification: any number of labels per image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from petriscope.core.errors import DataError
from petriscope.core.names import label_text
from petriscope.metrics.intervals import bootstrap_weights, group_index
from petriscope.metrics.multilabel import (
    full_label_metrics,
    judge_label_passes,
    label_draws,
    label_subset_metrics,
    quick_label_metrics,
)
from petriscope.metrics.passes import PassMetrics
from petriscope.metrics.statistics import RESAMPLES, Sample
from petriscope.tasks.base import Labeled, MetricInfo, PredictedBatches, Task, gather

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

HALF = 0.5  # the cutoff of a label for which none was chosen on val
TRUE, SAID, PROBABILITY = "target_", "predicted_", "p_"  # how columns of a table of predictions begin


@dataclass(frozen=True, eq=False)
class LabelOutputs:
    """Predictions of a split.

    Args:
        probabilities: of each label, float32 [N, K].
        cutoffs: the probability from which an image is said to have each label, float32 [K].
        facts: more values of each class for the evaluation, float [K], by name.
    """

    probabilities: np.ndarray
    cutoffs: np.ndarray
    facts: Mapping[str, np.ndarray] | None = None

    @property
    def decided(self) -> np.ndarray:
        """Which labels each image is said to have, bool [N, K]."""
        return self.probabilities >= self.cutoffs


class Multilabel(Task):
    """Targets are uint8 [N, K]: 1 where an image has a label, else 0. What `collect` gives is a `LabelOutputs`."""

    name = "multilabel"
    about = "sets of labels"
    targets_are = "uint8 [N, K], 0 or 1"
    dtype = "u1"
    exclusive = False
    loss_names: ClassVar[Mapping[str, str]] = {"cross-entropy": "binary-cross-entropy", "focal": "binary-focal"}
    monitors = ("map", "auc", "loss")
    metrics = (
        MetricInfo("map", "mAP", "average precision of the ranking of images by a label, mean over classes"),
        MetricInfo("auc", "AUC", "area under the ROC curve of each label, mean over classes; 0.5 is chance", False),
        MetricInfo("macro_f1", "Macro F1", "mean of the F1 scores per class, at the cutoffs chosen on val"),
        MetricInfo("exact_match", "Exact match", "share of images all of whose labels are right"),
        MetricInfo(
            "lrap", "Label ranking", "average precision of the ranking of labels by their probability, mean over images"
        ),
        MetricInfo("label_accuracy", "Label accuracy", "share of all labels of all images that are right"),
        MetricInfo("nll", "NLL", "binary cross-entropy, mean over labels; lower is better", False, False),
        MetricInfo(
            "ece", "ECE", "gap between probability and frequency of a label, over 15 bins; lower is better", True, False
        ),
    )
    per_class = MetricInfo("ap", "AP", "average precision of the ranking of images by a label")
    of_classes = (
        MetricInfo("f1", "F1", ""),
        MetricInfo("cutoff", "Cutoff", ""),
        MetricInfo("slope", "Slope of the log-odds", "", False),
        MetricInfo("offset", "Offset of the log-odds", "", False),
        MetricInfo("ece_before", "ECE before scaling", ""),
    )
    compared = ("map", "auc", "macro_f1", "exact_match", "lrap", "label_accuracy")
    calibrates = True
    has_stress_test = True
    judges_subsets = True

    def info(self, key: str) -> MetricInfo:
        own = (each for each in (self.per_class, *self.of_classes) if each.key == key)
        return next(own, super().info(key))

    def accepts(self, targets: np.ndarray) -> bool:
        return targets.ndim == 2 and targets.dtype == np.uint8

    def check(self, targets: np.ndarray, classes: Sequence[str], shape: tuple[int, int, int], ids: np.ndarray) -> None:
        if targets.shape[1] != len(classes):
            raise DataError(
                f"{targets.shape[1]} labels per image for {len(classes)} classes; there must be one of each"
            )
        wrong = np.flatnonzero((targets > 1).any(1))
        if len(wrong):
            first = targets[wrong[0]]
            raise DataError(
                f"the labels of image {ids[wrong[0]]} have the value {first[first > 1][0]}; a label is 1 where the image has it, "
                "else 0"
            )

    def amounts(self, targets: np.ndarray, classes: int) -> np.ndarray:
        return targets.astype(np.int64)

    def strata(self, targets: np.ndarray, classes: int) -> np.ndarray:
        """The rarest of its labels in the whole set; an image without labels counts as the most frequent class."""
        rarest_first = np.argsort(targets.sum(0, dtype=np.int64), kind="stable")
        there = targets[:, rarest_first] > 0
        return rarest_first[np.where(there.any(1), there.argmax(1), classes - 1)]

    def split_amounts(self, targets: np.ndarray, classes: int) -> np.ndarray:
        """Images per class, and images."""
        return np.concatenate([targets, np.ones((len(targets), 1), dtype=np.uint8)], axis=1)

    def loss_counts(self, targets: np.ndarray, classes: int) -> np.ndarray:
        return self.amounts(targets, classes)

    def relabel(self, targets: np.ndarray, table: np.ndarray) -> np.ndarray:
        out = np.zeros((len(targets), int(table.max(initial=-1)) + 1), dtype=np.uint8)
        for k, place in enumerate(table.tolist()):
            if place >= 0:
                out[:, place] |= targets[:, k]
        return out

    def names(self, targets: np.ndarray, classes: Sequence[str]) -> list[str]:
        return [label_text([classes[k] for k in np.flatnonzero(row).tolist()]) for row in targets]

    def loss_targets(self, targets: Tensor) -> Tensor:
        return targets.float()

    def log_probabilities(self, logits: Tensor) -> Tensor:
        import torch

        return torch.nn.functional.logsigmoid(logits)

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def hits(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        # Of a mixed image, the labels that it has half of or more count.
        return ((logits >= 0) == (targets >= HALF)).sum(), logits.new_full((), targets.numel())

    def collect(self, batches: PredictedBatches, count: int, classes: int, full: bool = False) -> LabelOutputs:
        return LabelOutputs(gather(batches), np.full(classes, HALF, dtype=np.float32))

    def quick(self, outputs: LabelOutputs, images: Labeled) -> dict[str, float]:
        return quick_label_metrics(outputs.probabilities, images.targets)

    def score(self, outputs: LabelOutputs, images: Labeled) -> float:
        """Mean average precision."""
        return quick_label_metrics(outputs.probabilities, images.targets)["map"]

    def judge(self, outputs: LabelOutputs, images: Labeled, resamples: int) -> dict[str, Any]:
        index = group_index(images.groups)
        p, facts = outputs.probabilities, {"cutoff": outputs.cutoffs, **(outputs.facts or {})}
        return full_label_metrics(p, images.targets, outputs.decided, images.classes, resamples, index, facts)

    def judge_subset(
        self, outputs: LabelOutputs, images: Labeled, rows: np.ndarray, groups: np.ndarray | None, resamples: int
    ) -> dict[str, Any]:
        """mAP with its interval, macro F1 and exact match."""
        p, decided = outputs.probabilities[rows], outputs.decided[rows]
        return label_subset_metrics(p, images.targets[rows], decided, resamples, group_index(groups))

    def table(self, outputs: LabelOutputs, images: Labeled, split: str) -> pd.DataFrame:
        """id, split, group (if there are groups), and per class whether the image has it (``target_<class>``) and is said
        to have it (``predicted_<class>``), 0 or 1, and its probability (``p_<class>``)."""
        import pandas as pd

        decided = outputs.decided.astype(np.uint8)
        columns: dict[str, Any] = {
            "id": images.ids.astype(object),
            "split": split,
            **({} if images.groups is None else {"group": images.groups.astype(object)}),
        }
        for start, values in ((TRUE, images.targets), (SAID, decided), (PROBABILITY, outputs.probabilities)):
            columns |= {f"{start}{name}": values[:, k] for k, name in enumerate(images.classes)}
        return pd.DataFrame(columns)

    def same_truth(self, columns: Iterable[str]) -> list[str]:
        return [column for column in columns if column.startswith(TRUE)]

    def sample(self, tables: Sequence[Mapping[str, np.ndarray]], metric: str) -> Sample:
        """
        Raises:
            ValueError: the tables lack a column of a class.
        """
        names = [key.removeprefix(TRUE) for key in tables[0] if key.startswith(TRUE)]
        if any(f"{start}{name}" not in table for table in tables for start in (SAID, PROBABILITY) for name in names):
            raise ValueError("the predictions of a class are missing")

        def stacked(table: Mapping[str, np.ndarray], start: str) -> np.ndarray:
            return np.stack([table[f"{start}{name}"] for name in names], 1)

        targets = stacked(tables[0], TRUE).astype(np.uint8)
        groups = next((table["group"].astype(str) for table in tables if "group" in table), None)
        index, n = group_index(groups), len(targets)
        found = [(stacked(table, PROBABILITY), stacked(table, SAID).astype(bool)) for table in tables]
        one = np.ones((1, n))
        values = np.array([label_draws(metric, p, targets, decided, one)[0] for p, decided in found])
        draws = [np.empty((len(tables), 0))]
        for weights in bootstrap_weights(n, RESAMPLES, index=index):
            draws.append(np.stack([label_draws(metric, p, targets, decided, weights) for p, decided in found]))
        right = np.stack([(decided == (targets == 1)).all(1) for _, decided in found])
        drawn = np.concatenate(draws, axis=1)
        # Undefined for all networks in resamples where no image has a label.
        return Sample(metric, right, values, drawn[:, np.isfinite(drawn).all(0)], index)

    def chosen(self, probabilities: np.ndarray) -> np.ndarray:
        """The probabilities themselves: the stress test measures how well they rank images."""
        return probabilities

    def mark(self, predicted: np.ndarray, targets: np.ndarray, classes: int) -> np.ndarray:
        """The probability of each label, float32 [B, K]."""
        return predicted

    def judge_passes(self, marks: np.ndarray, images: Labeled, resamples: int) -> PassMetrics:
        return judge_label_passes(marks, images.targets, resamples, group_index(images.groups))
