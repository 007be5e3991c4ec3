"""Losses of images that have any number of labels: each label of an image is a question of its own, yes or no."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from petriscope.core.errors import RequestError
from petriscope.training.losses.class_weights import ClassWeights, weigh_classes
from petriscope.training.losses.cross_entropy import focused

Gamma = Annotated[float, Field(ge=0)]
PositiveWeights = Literal["none", "balanced"] | tuple[Annotated[float, Field(ge=0)], ...]


class BinaryCrossEntropy(nn.Module):
    """Cross-entropy of every label of every image, and their mean.

    Args:
        counts: int [N, K], 1 where a training image has a label.
        label_smoothing: targets are moved so far from 0 and 1 toward 1/2.
        class_weights: how much each class counts: none, balanced, median-frequency, or one number per class.
        positive_weights: weight of an image that has a label relative to one that does not: none; balanced: both kinds weigh
            the same in total; or one number per class.
    """

    per_label = True
    weight: Tensor | None
    positive: Tensor | None

    def __init__(
        self,
        counts: np.ndarray,
        *,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        class_weights: ClassWeights = "none",
        positive_weights: PositiveWeights = "none",
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("weight", weigh_classes(class_weights, counts))
        self.register_buffer("positive", weigh_positives(positive_weights, counts))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits, float [B, K], and for each class 1 where the image has it, else 0, or between the two where images were
        mixed, float [B, K] -> the mean loss, a scalar."""
        targets = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
        present, absent = self.terms(logits)
        if self.positive is not None:
            present = present * self.positive
        losses = -(targets * present + (1 - targets) * absent)
        return (losses if self.weight is None else losses * self.weight).mean()

    def terms(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Log-likelihood of each label, [B, K], if it is present and if it is absent."""
        return nn.functional.logsigmoid(logits), nn.functional.logsigmoid(-logits)


class BinaryFocal(BinaryCrossEntropy):
    """Binary cross-entropy that weighs a label less, the surer and righter the network is of it: -(1 - p)^gamma log p, where p
    is the probability of what is true. Lin et al., 2017, arXiv:1708.02002.

    Args:
        counts, class_weights, positive_weights: as of `BinaryCrossEntropy`.
        gamma: 0 is binary cross-entropy; the paper's is 2.
    """

    def __init__(
        self,
        counts: np.ndarray,
        *,
        gamma: Gamma = 2.0,
        class_weights: ClassWeights = "none",
        positive_weights: PositiveWeights = "none",
    ) -> None:
        super().__init__(counts, class_weights=class_weights, positive_weights=positive_weights)
        self.gamma = gamma

    def terms(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        present, absent = super().terms(logits)
        return focused(present, absent.exp(), self.gamma), focused(absent, present.exp(), self.gamma)


class AsymmetricLoss(BinaryCrossEntropy):
    """Binary cross-entropy that down-weights absent labels, which are the majority, by a power of their probability, and
    ignores those below a margin. Ridnik et al., 2021, ICCV, arXiv:2009.14119.

    With q = max(p - margin, 0), the loss of a label that the image has is -(1 - p)^gamma_positive log p, and of one that it has
    not -q^gamma_negative log(1 - q). The paper sums over labels; this is their mean.

    Args:
        counts, class_weights, positive_weights: as of `BinaryCrossEntropy`.
        gamma_positive, gamma_negative, margin: the paper's are 0, 4 and 0.05.
    """

    def __init__(
        self,
        counts: np.ndarray,
        *,
        gamma_positive: Gamma = 0.0,
        gamma_negative: Gamma = 4.0,
        margin: Annotated[float, Field(ge=0, lt=1)] = 0.05,
        class_weights: ClassWeights = "none",
        positive_weights: PositiveWeights = "none",
    ) -> None:
        super().__init__(counts, class_weights=class_weights, positive_weights=positive_weights)
        self.gamma_positive, self.gamma_negative, self.margin = gamma_positive, gamma_negative, margin

    def terms(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        present, absent = super().terms(logits)
        p, rest = present.exp(), absent.exp()
        if self.margin:
            p = (p - self.margin).clamp_min(0)
            absent = torch.log1p(-p)
        return focused(present, rest, self.gamma_positive), focused(absent, p, self.gamma_negative)


def weigh_positives(rule: PositiveWeights, counts: np.ndarray) -> Tensor | None:
    """Weights of the images that have a label, float32 [K]; None for ``none``.

    Raises:
        RequestError: the number of weights is not the number of classes.
    """
    if rule == "none":
        return None
    has = counts.sum(0)
    if rule == "balanced":
        return torch.from_numpy((len(counts) - has) / np.maximum(has, 1)).float()
    if len(rule) != len(has):
        raise RequestError(f"loss.positive_weights has {len(rule)} numbers for {len(has)} classes")
    return torch.tensor(rule)
