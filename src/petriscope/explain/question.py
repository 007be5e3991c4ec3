"""What to explain: a class of each image, and for segmentation the pixels predicted as it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from petriscope.core.results import CLASSIFICATION
from petriscope.tasks import Task, find_task


@dataclass(frozen=True, eq=False)
class Question:
    """The class to explain for each image of a batch.

    Args:
        classes: int64 [B].
        regions: for segmentation, the pixels to explain, bool [B, H, W]; None for classification.
        task: of the model; None: one in which an image, or a pixel, has one class.
    """

    classes: Tensor
    regions: Tensor | None = None
    task: Task | None = None

    def score(self, logits: Tensor) -> Tensor:
        """The logit of the class, [B], from logits [B, K] or [B, K, H, W]; for segmentation its mean over the region, 0 if the
        region is empty.

        Seg-Grad-CAM (Vinogradova, Dibrov and Myers, 2020, arXiv:2002.11434) takes the sum over the region, which gives the
        same map up to its scale.
        """
        return self._over_region(logits)

    def confidence(self, logits: Tensor) -> Tensor:
        """The log-probability of the class, [B], from logits [B, K] or [B, K, H, W]; for segmentation its mean probability
        over the region, because a mean of logarithms would be dominated by a few pixels."""
        if self.regions is None:
            task = self.task or find_task(CLASSIFICATION)
            return self._over_region(task.log_probabilities(logits))
        return self._over_region(logits.softmax(1))

    def take(self, rows: Tensor) -> Question:
        return Question(self.classes[rows], None if self.regions is None else self.regions[rows], self.task)

    def _over_region(self, values: Tensor) -> Tensor:
        chosen = values[torch.arange(len(values), device=values.device), self.classes]
        if self.regions is None:
            return chosen
        inside = self.regions.to(values.dtype)
        return (chosen * inside).sum((1, 2)) / inside.sum((1, 2)).clamp_min(1)
