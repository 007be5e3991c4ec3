"""Segmentation: one class per pixel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from petriscope.core.errors import DataError, RequestError
from petriscope.core.masks import BACKGROUND, IGNORE
from petriscope.metrics.passes import PassMetrics, judge_masks
from petriscope.metrics.segmentation import (
    Tally,
    background_of,
    class_counts,
    confusion_each,
    full_mask_metrics,
    mask_table,
    mean_iou,
    quick_mask_metrics,
    scenes_of,
    tally_masks,
)
from petriscope.metrics.statistics import Sample, resample_miou
from petriscope.tasks.base import Labeled, MetricInfo, PredictedBatches, Task

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

PIXELS = 2**18  # of a batch, where each has one probability per class
COUNTS = ("true", "guessed", "found")  # columns per class in the table
OF_SUBSETS = ("n", "groups", "miou", "miou_with_background", "pixel_accuracy")


class Segmentation(Task):
    """Targets are masks, uint8 [N, H, W]: a class index per pixel, or `IGNORE`. What `collect` gives is a `Tally`."""

    name = "segmentation"
    about = "masks"
    targets_are = "uint8 [N, H, W]"
    dtype = "u1"
    dense = True
    counted = "labeled pixels"
    monitors = ("miou", "accuracy", "loss")
    metrics = (
        MetricInfo("miou", "Mean IoU", "intersection of predicted and true pixels over their union, mean over classes"),
        MetricInfo(
            "miou_with_background", "Mean IoU with background", "the same with the background counted as a class"
        ),
        MetricInfo("pixel_accuracy", "Pixel accuracy", "share of labeled pixels given their true class"),
        MetricInfo("boundary_f1", "Boundary F1", "F1 of the outlines of the classes, within a pixel or so"),
        MetricInfo("nll", "NLL", "negative log-likelihood per labeled pixel; lower is better", False, False),
    )
    per_class = MetricInfo("iou", "IoU", "intersection of predicted and true pixels over their union")
    compared = ("miou",)
    has_stress_test = True
    judges_subsets = True

    def accepts(self, targets: np.ndarray) -> bool:
        return targets.ndim == 3

    def check(self, targets: np.ndarray, classes: Sequence[str], shape: tuple[int, int, int], ids: np.ndarray) -> None:
        if targets.dtype != np.uint8 or targets.shape[1:] != shape[:2]:
            raise DataError(
                f"masks must be uint8 [N, {shape[0]}, {shape[1]}] as the images are, not "
                f"{targets.dtype} {list(targets.shape)}"
            )
        if len(classes) > IGNORE:
            raise DataError(f"masks can have {IGNORE} classes, not {len(classes)}: {IGNORE} marks unlabeled pixels")
        known = np.zeros(256, dtype=bool)
        known[: len(classes)] = known[IGNORE] = True
        for index, mask in enumerate(targets):
            if not known[mask].all():
                raise DataError(
                    f"the mask of image {ids[index]} has the value {mask[~known[mask]][0]}; there are "
                    f"{len(classes)} classes, counted from 0"
                )

    def amounts(self, targets: np.ndarray, classes: int) -> np.ndarray:
        rows = [np.bincount(mask.reshape(-1), minlength=256)[:classes] for mask in targets]
        return np.array(rows, dtype=np.int64).reshape(-1, classes)

    def strata(self, targets: np.ndarray, classes: int) -> np.ndarray:
        """The rarest class, by pixels in the whole set; a mask without labels counts as the most frequent class."""
        amounts = self.amounts(targets, classes)
        rarest_first = np.argsort(amounts.sum(0), kind="stable")
        there = amounts[:, rarest_first] > 0
        return rarest_first[np.where(there.any(1), there.argmax(1), classes - 1)]

    def split_amounts(self, targets: np.ndarray, classes: int) -> np.ndarray:
        """Pixels per class, and images."""
        return np.concatenate([self.amounts(targets, classes), np.ones((len(targets), 1), dtype=np.int64)], axis=1)

    def loss_counts(self, targets: np.ndarray, classes: int) -> np.ndarray:
        return self.amounts(targets, classes)

    def relabel(self, targets: np.ndarray, table: np.ndarray) -> np.ndarray:
        lookup = np.full(256, IGNORE, dtype=np.uint8)
        lookup[: len(table)] = table
        return lookup[targets]

    def single_class(self, targets: np.ndarray) -> np.ndarray:
        return (targets == targets[:, :1, :1]).all(axis=(1, 2))

    def one_vs_rest(self, targets: np.ndarray, index: int) -> np.ndarray:
        lookup = np.zeros(256, dtype=np.uint8)
        lookup[index], lookup[IGNORE] = 1, IGNORE
        return lookup[targets]

    def loss_targets(self, targets: Tensor) -> Tensor:
        return targets.long()

    def hits(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        largest = logits.max(1).indices  # argmax takes up to nine times as long over a dimension in the middle
        return (largest == targets).sum(), (targets != IGNORE).sum().to(logits.dtype)

    def collect(self, batches: PredictedBatches, count: int, classes: int, full: bool = False) -> Tally:
        """``full``: trace the outlines of the classes too."""
        return tally_masks(batches, count, classes, outlines=full)

    def quick(self, outputs: Tally, images: Labeled) -> dict[str, float]:
        return quick_mask_metrics(outputs, background_of(images.classes))

    def score(self, outputs: Tally, images: Labeled) -> float:
        """Mean IoU, the background left out."""
        return float(mean_iou(outputs.confusion.sum(0), background_of(images.classes)))

    def judge(self, outputs: Tally, images: Labeled, resamples: int) -> dict[str, Any]:
        return full_mask_metrics(outputs, images.classes, images.groups, resamples)

    def judge_subset(
        self, outputs: Tally, images: Labeled, rows: np.ndarray, groups: np.ndarray | None, resamples: int
    ) -> dict[str, Any]:
        """Mean IoU and pixel accuracy with their intervals."""
        found = full_mask_metrics(outputs.take(rows), images.classes, groups, resamples)
        return {key: value for key, value in found.items() if key.removesuffix("_ci95") in OF_SUBSETS}

    def table(self, outputs: Tally, images: Labeled, split: str) -> pd.DataFrame:
        """See `petriscope.metrics.segmentation.mask_table`."""
        return mask_table(outputs, images.classes, images.ids, images.groups, split)

    def sample(self, tables: Sequence[Mapping[str, np.ndarray]], metric: str) -> Sample:
        """Mean IoU without the background; the bootstrap draws scenes.

        Raises:
            RequestError: mean IoU is undefined.
            ValueError: the tables do not have numbers of pixels.
        """
        names = [key.removeprefix("true_") for key in tables[0] if key.startswith("true_")]
        names = [name for name in names if name != BACKGROUND]
        counts = np.array(
            [[[table[f"{key}_{name}"] for key in COUNTS] for name in names] for table in tables], dtype=float
        )
        if not (np.isfinite(counts) & (counts >= 0)).all():
            raise ValueError("numbers of pixels are missing or negative")
        scenes = tables[0]["scene"].astype(str)
        found = resample_miou(counts.astype(np.int64).transpose(0, 3, 1, 2), scenes)
        if np.isnan(found.values).any():
            raise RequestError(
                "mean IoU cannot be compared: no pixel of these images has a label other than background"
            )
        return found

    def same_truth(self, columns: Iterable[str]) -> list[str]:
        return [column for column in columns if column == "scene" or column.startswith("true_")]

    def mark(self, predicted: np.ndarray, targets: np.ndarray, classes: int) -> np.ndarray:
        """Pixels per class in each image, as `class_counts` counts them, int64 [B, K, 3]."""
        import torch

        confusion = confusion_each(torch.from_numpy(predicted), torch.from_numpy(targets), classes)
        return class_counts(confusion.numpy())

    def judge_passes(self, marks: np.ndarray, images: Labeled, resamples: int) -> PassMetrics:
        scenes = scenes_of(images.groups, len(images))
        return judge_masks(marks, scenes, background_of(images.classes), resamples)

    def batch_size(self, largest: int, shape: tuple[int, int, int]) -> int:
        return max(1, min(largest, PIXELS // (shape[0] * shape[1])))
