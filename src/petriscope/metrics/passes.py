"""Metrics of several passes over the same images, such as one per corruption. All passes share the bootstrap resamples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from petriscope.metrics.intervals import bootstrap_weights, count_groups, percentile95, proportion95, sum_by
from petriscope.metrics.segmentation import counted_accuracy, counted_mean_iou, defined_mean


@dataclass(frozen=True)
class Share:
    """A metric from 0 to 1 and its 95 % interval; NaN where it is undefined."""

    value: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class PassMetrics:
    """A metric of P passes over the same images; the first pass is over the undisturbed images.

    Args:
        name, accuracy_name: names of the metric and of the accuracy.
        values: float [P], the metric of each pass.
        drawn: float [R, P], the metric in each bootstrap resample.
        accuracy: the accuracy of each pass, P of them.
        n: number of images.
        groups: number of groups, if the bootstrap draws groups; None: it draws images.
        scenes: where targets are masks, number of groups, or of images if there are no groups.
    """

    name: str
    accuracy_name: str
    values: np.ndarray
    drawn: np.ndarray
    accuracy: list[Share]
    n: int
    groups: int | None = None
    scenes: int | None = None

    def mean(self, passes: Sequence[int], less: int | None = None) -> Share:
        """The mean over ``passes``; with ``less``, the metric of the pass ``less`` minus that mean."""
        rows = list(passes)
        value, drawn = defined_mean(self.values[rows]), defined_mean(self.drawn[:, rows])
        if less is not None:
            value, drawn = self.values[less] - value, self.drawn[:, less] - drawn
        return Share(float(value), percentile95(drawn))


def judge_labels(
    hits: np.ndarray, labels: np.ndarray, classes: int, resamples: int, index: np.ndarray | None = None
) -> PassMetrics:
    """Balanced accuracy of P passes over the same N images.

    Args:
        hits: whether each prediction is correct, bool [P, N].
        labels: int64 [N].
        classes: K.
        resamples: number of bootstrap resamples.
        index: groups of the images, which the bootstrap draws, int64 [N]; None: it draws images.
    """
    n = len(labels)
    members = [member for member in (np.flatnonzero(labels == k) for k in range(classes)) if len(member)]

    def balanced(weights: np.ndarray) -> np.ndarray:
        """Balanced accuracy of every pass, [R, P], for weights of the images, [R, N]."""
        total = np.zeros((len(weights), len(hits)))
        there = np.zeros((len(weights), 1))
        for member in members:
            weight = weights[:, member]
            count = weight.sum(1, keepdims=True)
            total = total + np.where(count > 0, weight @ hits[:, member].T / np.maximum(count, 1e-12), 0)
            there = there + (count > 0)
        return total / there

    draws = [balanced(weights) for weights in bootstrap_weights(n, resamples, index=index)]
    drawn = np.concatenate([np.empty((0, len(hits))), *draws])
    accuracy = [Share(float(row.mean()), proportion95(row, index)) for row in hits]
    groups = None if index is None else count_groups(index)
    return PassMetrics("balanced_accuracy", "accuracy", balanced(np.ones((1, n)))[0], drawn, accuracy, n, groups)


def judge_masks(counts: np.ndarray, scenes: np.ndarray, background: int | None, resamples: int) -> PassMetrics:
    """Mean IoU of P passes over the same N images.

    Args:
        counts: pixels per pass, image and class, int64 [P, N, K, 3]; see `petriscope.metrics.segmentation.class_counts`.
        scenes: the scene of each image, counted from 0, int64 [N]; the bootstrap draws scenes.
        background: the class that mean IoU leaves out; None: no class.
        resamples: number of bootstrap resamples.
    """
    n = len(scenes)
    sums = [sum_by(scenes, each) for each in counts]
    drawn = len(sums[0])

    def judged(weights: np.ndarray) -> np.ndarray:
        """Mean IoU and pixel accuracy of every pass, [2, R, P], for weights of the scenes, [R, S]."""
        # One pass at a time, because the counts of all resamples of all passes would take much memory.
        totals = (np.tensordot(weights, each, 1) for each in sums)
        return np.stack([(counted_mean_iou(total, background), counted_accuracy(total)) for total in totals], 2)

    miou, accuracy = judged(np.ones((1, drawn)))[:, 0]
    draws = [judged(weights) for weights in bootstrap_weights(drawn, resamples)]
    spread = np.concatenate([np.empty((2, 0, len(counts))), *draws], 1)
    shares = [Share(float(value), percentile95(column)) for value, column in zip(accuracy, spread[1].T, strict=True)]
    return PassMetrics("miou", "pixel_accuracy", miou, spread[0], shares, n, drawn if drawn < n else None, drawn)
