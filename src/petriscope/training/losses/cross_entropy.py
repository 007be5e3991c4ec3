"""Losses of one image or one pixel at a time: cross-entropy and its relatives."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from petriscope.core.masks import IGNORE
from petriscope.training.losses.borders import near_borders
from petriscope.training.losses.class_weights import ClassWeights, weigh_classes

Emphasis = Annotated[float, Field(ge=0)]
Sigma = Annotated[float, Field(gt=0, le=20)]
LEAST = 1e-8  # of the base of a power, whose slope is infinite at 0 if the exponent is below 1


class CrossEntropy(nn.Module):
    """Cross-entropy with label smoothing and class weights.

    Args:
        counts: as of `weigh_classes`.
        label_smoothing: the share of each target spread over all classes. Szegedy et al., 2016, arXiv:1512.00567.
        class_weights: none, balanced, median-frequency, or one number per class.
        borders: for masks: the weight of a pixel at a border between classes is 1 + borders, and 1 far from all borders.
            Ronneberger et al., 2015, arXiv:1505.04597, who use 10.
        border_sigma: in pixels; the extra weight falls with the distance from the border as a Gaussian of this width.
    """

    weight: Tensor | None

    def __init__(
        self,
        counts: np.ndarray,
        *,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        class_weights: ClassWeights = "none",
        borders: Emphasis = 0.0,
        border_sigma: Sigma = 2.0,
    ) -> None:
        super().__init__()
        self.label_smoothing, self.borders, self.border_sigma = label_smoothing, borders, border_sigma
        self.register_buffer("weight", weigh_classes(class_weights, counts))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Shapes as in `petriscope.training.losses` -> the mean loss, a scalar."""
        if logits.ndim == 2:
            return nn.functional.cross_entropy(
                logits, targets, weight=self.weight, label_smoothing=self.label_smoothing
            )
        losses = nn.functional.cross_entropy(
            logits,
            targets,
            weight=self.weight,
            label_smoothing=self.label_smoothing,
            ignore_index=IGNORE,
            reduction="none",
        )
        return _mean_over_pixels(losses, targets, self.weight, self.borders, self.border_sigma)


class FocalLoss(nn.Module):
    """-(1 - p)^gamma log p: cross-entropy that weighs a term less, the higher the predicted probability p of its target.
    Lin et al., 2017, arXiv:1708.02002.

    Args:
        counts: as of `weigh_classes`.
        gamma: 0 is cross-entropy; the paper's is 2.
        class_weights: none, balanced, median-frequency, or one number per class (the paper's alpha).
        borders, border_sigma: as of `CrossEntropy`.
    """

    weight: Tensor | None

    def __init__(
        self,
        counts: np.ndarray,
        *,
        gamma: Annotated[float, Field(ge=0)] = 2.0,
        class_weights: ClassWeights = "none",
        borders: Emphasis = 0.0,
        border_sigma: Sigma = 2.0,
    ) -> None:
        super().__init__()
        self.gamma, self.borders, self.border_sigma = gamma, borders, border_sigma
        self.register_buffer("weight", weigh_classes(class_weights, counts))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Shapes as in `petriscope.training.losses` -> the mean loss, a scalar."""
        log_p = logits.log_softmax(1)
        terms = focused(log_p, 1 - log_p.exp(), self.gamma)
        return _mean_over(terms, targets, self.weight, self.borders, self.border_sigma)


def focused(terms: Tensor, doubt: Tensor, gamma: float) -> Tensor:
    """Terms multiplied by a power of what they are weighed by, 0 to 1."""
    return terms if gamma == 0 else terms * doubt.clamp_min(LEAST) ** gamma


class GeneralizedCrossEntropy(nn.Module):
    """(1 - p^q) / q, for noisy labels. It lies between cross-entropy (q near 0), which fits every label, and the absolute
    error (q = 1), whose gradient vanishes for labels that the model finds unlikely. Zhang and Sabuncu, 2018,
    arXiv:1805.07836.

    Args:
        counts: as of `weigh_classes`.
        q: the paper's is 0.7.
        class_weights: none, balanced, median-frequency, or one number per class.
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
        """Shapes as in `petriscope.training.losses` -> the mean loss, a scalar."""
        terms = ((self.q * logits.log_softmax(1)).exp() - 1) / self.q
        return _mean_over(terms, targets, self.weight)


def _mean_over(
    terms: Tensor, targets: Tensor, weight: Tensor | None, borders: float = 0.0, border_sigma: float = 1.0
) -> Tensor:
    """Minus the mean of ``terms``, float [B, K] or [B, K, H, W], at the targets. Weighted as in torch: the sum is divided by
    the sum of the weights for hard targets, and by the number of images for soft ones."""
    if terms.ndim > 2:
        losses = nn.functional.nll_loss(terms, targets, weight=weight, ignore_index=IGNORE, reduction="none")
        return _mean_over_pixels(losses, targets, weight, borders, border_sigma)
    if not targets.is_floating_point():
        return nn.functional.nll_loss(terms, targets, weight=weight)
    if weight is not None:
        targets = targets * weight
    return -(terms * targets).sum(1).mean()


def _mean_over_pixels(
    losses: Tensor, masks: Tensor, weight: Tensor | None, borders: float, border_sigma: float
) -> Tensor:
    """The weighted mean of losses, float [B, H, W], over the labeled pixels; 0 where none is labeled.

    The losses are already multiplied by their class weights, and are 0 where unlabeled.
    """
    labeled = masks != IGNORE
    shares = labeled.to(losses.dtype)
    if weight is not None:
        shares = shares * weight[torch.where(labeled, masks, 0)]
    if borders:
        emphasis = 1 + borders * near_borders(masks, border_sigma)
        losses, shares = losses * emphasis, shares * emphasis
    return losses.sum() / shares.sum().clamp_min(torch.finfo(losses.dtype).tiny)
