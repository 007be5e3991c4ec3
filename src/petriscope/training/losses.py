"""Losses: logits [B, K] and targets -> a scalar."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from petriscope.errors import RequestError
from petriscope.parts import Catalogue

LOSSES = Catalogue(
    "loss",
    {
        "cross-entropy": "petriscope.training.losses:CrossEntropy",
        "focal": "petriscope.training.losses:FocalLoss",
        "generalized-cross-entropy": "petriscope.training.losses:GeneralizedCrossEntropy",
    },
)

ClassWeights = Literal["none", "balanced"] | tuple[Annotated[float, Field(ge=0)], ...]


def weigh_classes(rule: Literal["none", "balanced"] | tuple[float, ...], counts: np.ndarray) -> Tensor | None:
    """A weight a class, float32 [K], or None.

    Args:
        rule: ``balanced``: in inverse proportion to the class's pictures, so that every class weighs the same in an
            epoch and the mean weight of a picture is 1; or the weights themselves.
        counts: training pictures a class, [K].
    """
    if rule == "none":
        return None
    if rule == "balanced":
        return torch.from_numpy(counts.sum() / (len(counts) * np.maximum(counts, 1))).float()
    if len(rule) != len(counts):
        raise RequestError(f"loss.class_weights has {len(rule)} numbers for {len(counts)} classes")
    return torch.tensor(rule)


class CrossEntropy(nn.Module):
    """Cross-entropy with label smoothing and class weights.

    Args:
        counts: training pictures a class, [K].
        label_smoothing: the share of each target spread over all classes. Szegedy et al., 2016, arXiv:1512.00567.
        class_weights: none, balanced, or a number a class.
    """

    weight: Tensor | None

    def __init__(
        self,
        counts: np.ndarray,
        *,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        class_weights: ClassWeights = "none",
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("weight", weigh_classes(class_weights, counts))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits, float [B, K], or [B, K, H, W] for masks; targets int64 [B] or [B, H, W], or the share of each class,
        float [B, K] -> the mean loss, a scalar."""
        return nn.functional.cross_entropy(logits, targets, weight=self.weight, label_smoothing=self.label_smoothing)


class FocalLoss(nn.Module):
    """Cross-entropy whose terms count less the surer the model is of them: -(1 - p)^gamma log p. Lin et al., 2017,
    arXiv:1708.02002.

    Args:
        counts: training pictures a class, [K].
        gamma: 0 is cross-entropy; the paper's is 2.
        class_weights: none, balanced, or a number a class (the paper's alpha).
    """

    weight: Tensor | None

    def __init__(
        self,
        counts: np.ndarray,
        *,
        gamma: Annotated[float, Field(ge=0)] = 2.0,
        class_weights: ClassWeights = "none",
    ) -> None:
        super().__init__()
        self.gamma = gamma
        self.register_buffer("weight", weigh_classes(class_weights, counts))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """As `CrossEntropy.forward`."""
        log_p = logits.log_softmax(1)
        terms = (1 - log_p.exp()) ** self.gamma * log_p
        return _mean_over(terms, targets, self.weight)


class GeneralizedCrossEntropy(nn.Module):
    """(1 - p^q) / q: between cross-entropy (q to 0), which learns every label, and the absolute error (q = 1), which
    gives up on labels it finds unlikely. For noisy labels. Zhang and Sabuncu, 2018, arXiv:1805.07836.

    Args:
        counts: training pictures a class, [K].
        q: the paper's is 0.7.
        class_weights: none, balanced, or a number a class.
    """

    weight: Tensor | None

    def __init__(
        self,
        counts: np.ndarray,
        *,
        q: Annotated[float, Field(gt=0, le=1)] = 0.7,
        class_weights: ClassWeights = "none",
    ) -> None:
        super().__init__()
        self.q = q
        self.register_buffer("weight", weigh_classes(class_weights, counts))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """As `CrossEntropy.forward`."""
        terms = ((self.q * logits.log_softmax(1)).exp() - 1) / self.q
        return _mean_over(terms, targets, self.weight)


def _mean_over(terms: Tensor, targets: Tensor, weight: Tensor | None) -> Tensor:
    """Minus the mean of the terms [B, K, ...] at the targets; with weights, as torch means it: hard targets are divided
    by the sum of their weights, soft ones by their number."""
    if not targets.is_floating_point():
        return nn.functional.nll_loss(terms, targets, weight=weight)
    if weight is not None:
        targets = targets * weight.view(-1, *(1,) * (targets.ndim - 2))
    return -(terms * targets).sum(1).mean()
