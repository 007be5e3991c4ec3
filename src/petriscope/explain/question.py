"""What is asked about images: why this class, and of a model of masks, why this class at these pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Question:
    """One class of each image of a batch.

    Args:
        classes: int64 [B].
        regions: bool [B, H, W], the pixels asked about; None for a model of labels.
    """

    classes: Tensor
    regions: Tensor | None = None

    def score(self, logits: Tensor) -> Tensor:
        """Logits [B, K] or [B, K, H, W] -> the class's, [B]; of masks, the mean over the region, 0 where it is empty.

        The mean logit over a region of any shape: Vinogradova, Dibrov and Myers, 2020, arXiv:2002.11434 ("Seg-Grad-CAM"),
        who take the sum; the map is the same up to its scale.
        """
        return self._over_region(logits)

    def belief(self, logits: Tensor) -> Tensor:
        """Logits -> how sure the network is, [B]: the class's log-probability; of masks, its mean probability over the
        region, since the logarithm would let a few lost pixels outweigh all others."""
        if self.regions is None:
            return self._over_region(logits.log_softmax(1))
        return self._over_region(logits.softmax(1))

    def take(self, rows: Tensor) -> Question:
        return Question(self.classes[rows], None if self.regions is None else self.regions[rows])

    def _over_region(self, values: Tensor) -> Tensor:
        chosen = values[torch.arange(len(values), device=values.device), self.classes]
        if self.regions is None:
            return chosen
        inside = self.regions.to(values.dtype)
        return (chosen * inside).sum((1, 2)) / inside.sum((1, 2)).clamp_min(1)
