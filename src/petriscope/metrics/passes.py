"""Metrics of several passes over the same images, such as one per corruption, over one bootstrap for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from petriscope.metrics.intervals import bootstrap_weights, percentile95, wilson
from petriscope.metrics.segmentation import counted_accuracy, counted_mean_iou, defined_mean, sum_by


@dataclass(frozen=True)
class Share:
    """A metric from 0 to 1 and its 95 % interval; NaN where it is not defined."""

    value: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class PassMetrics:
    """The metric of every pass, the first of plain images, over one bootstrap for all.

    Args:
        name: of the metric; ``accuracy_name``: of the accuracy beside it.
        values: [P]; ``drawn``: those of the resamples, [R, P].
        accuracy: of every pass, whatever the metric.
        n, scenes: images, and what was resampled of them; None: they themselves.
    """

    name: str
    accuracy_name: str
    values: np.ndarray
    drawn: np.ndarray
    accuracy: list[Share]
    n: int
    scenes: int | None = None

    def mean(self, passes: Sequence[int], less: int | None = None) -> Share:
        """Mean over ``passes``; with ``less``, what it lies below the metric of this pass."""
        rows = list(passes)
        value, drawn = defined_mean(self.values[rows]), defined_mean(self.drawn[:, rows])
        if less is not None:
            value, drawn = self.values[less] - value, self.drawn[:, less] - drawn
        return Share(float(value), percentile95(drawn))


def judge_labels(hits: np.ndarray, labels: np.ndarray, classes: int, resamples: int) -> PassMetrics:
    """Balanced accuracy of hits, bool [P, N], on images with labels, int64 [N]."""
    n = len(labels)
    members = [member for member in np.eye(classes)[labels].T if member.any()]

    def balanced(weights: np.ndarray) -> np.ndarray:
        """Of every pass under weights of the images [R, N]: [R, P]."""
        total = np.zeros((len(weights), len(hits)))
        there = np.zeros((len(weights), 1))
        for member in members:
            weight = weights * member
            count = weight.sum(1, keepdims=True)
            total = total + np.where(count > 0, weight @ hits.T / np.maximum(count, 1e-12), 0)
            there = there + (count > 0)
        return total / there

    draws = [balanced(weights) for weights in bootstrap_weights(n, resamples)]
    drawn = np.concatenate([np.empty((0, len(hits))), *draws])
    accuracy = [Share(float(row.mean()), wilson(float(row.sum()), n)) for row in hits]
    return PassMetrics("balanced_accuracy", "accuracy", balanced(np.ones((1, n)))[0], drawn, accuracy, n)


def judge_masks(counts: np.ndarray, scenes: np.ndarray, background: int | None, resamples: int) -> PassMetrics:
    """Mean IoU of pixels counted image by image, int64 [P, N, K, 3].

    Args:
        scenes: the scene of each image, counted from 0, int64 [N]; the bootstrap draws scenes.
        background: the class that mean IoU leaves out.
    """
    n = len(scenes)
    sums = [sum_by(scenes, each) for each in counts]
    drawn = len(sums[0])

    def judged(weights: np.ndarray) -> np.ndarray:
        """Mean IoU and pixel accuracy of every pass under weights of the scenes [R, S]: [2, R, P]."""
        # A pass at a time: the counts of all resamples of all passes would be large.
        totals = (np.tensordot(weights, each, 1) for each in sums)
        return np.stack([(counted_mean_iou(total, background), counted_accuracy(total)) for total in totals], 2)

    miou, accuracy = judged(np.ones((1, drawn)))[:, 0]
    draws = [judged(weights) for weights in bootstrap_weights(drawn, resamples)] if drawn > 1 else []
    spread = np.concatenate([np.empty((2, 0, len(counts))), *draws], 1)
    shares = [Share(float(value), percentile95(column)) for value, column in zip(accuracy, spread[1].T, strict=True)]
    return PassMetrics("miou", "pixel_accuracy", miou, spread[0], shares, n, drawn)
