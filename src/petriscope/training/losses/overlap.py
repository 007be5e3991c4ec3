"""Losses of whole regions: how well the predicted pixels of a class overlap with its true ones.

The pixels of a batch form one region, or each image is a region of its own. Labels are treated as masks of one pixel.
Classes that are absent from a region's targets are left out of the mean.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from petriscope.core.errors import RequestError
from petriscope.core.masks import IGNORE
from petriscope.training.losses.class_weights import ClassWeights, weigh_classes

Share = Annotated[float, Field(ge=0)]


class TverskyLoss(nn.Module):
    """(1 - TP / (TP + alpha FP + beta FN))^(1 / gamma), averaged over classes, with TP, FP and FN as sums of predicted
    probabilities. Salehi et al., 2017, arXiv:1706.05721. With gamma above 1 it is the focal Tversky loss of Abraham and
    Khan, 2018, arXiv:1810.07842, whose gamma is 4/3.

    Args:
        counts: as of `weigh_classes`.
        alpha: cost of a false positive.
        beta: cost of a false negative; a value above alpha favors recall.
        gamma: 1 gives the plain loss.
        smooth: number of pixels added to numerator and denominator, which bounds the gradient of very small regions.
        per_image: take each image as a region of its own instead of the whole batch.
        class_weights: none, balanced, median-frequency, or one number per class.
    """

    weight: Tensor | None

    def __init__(
        self,
        counts: np.ndarray,
        *,
        alpha: Share = 0.3,
        beta: Share = 0.7,
        gamma: Annotated[float, Field(ge=1, le=10)] = 1.0,
        smooth: Annotated[float, Field(gt=0)] = 1.0,
        per_image: bool = False,
        class_weights: ClassWeights = "none",
    ) -> None:
        super().__init__()
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.smooth, self.per_image = smooth, per_image
        self.register_buffer("weight", weigh_classes(class_weights, counts))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Shapes as in `petriscope.training.losses` -> a scalar."""
        p, truth, labeled = regions(logits, targets, self.per_image)
        p = p * labeled
        hit = (p * truth).sum(2)
        wrong, missed = p.sum(2) - hit, truth.sum(2) - hit
        index = (hit + self.smooth) / (hit + self.alpha * wrong + self.beta * missed + self.smooth)
        # The derivative of the root is infinite at 0.
        losses = (1 - index).clamp_min(1e-6) ** (1 / self.gamma) if self.gamma > 1 else 1 - index
        return mean_over_present(losses, truth, self.weight)


class DiceLoss(TverskyLoss):
    """1 - 2 TP / (2 TP + FP + FN), averaged over classes: the Tversky loss with alpha = beta = 1/2. Milletari et al., 2016,
    "V-Net", arXiv:1606.04797, but without the squares in the denominator.

    Args:
        counts, smooth, per_image, class_weights: as of `TverskyLoss`.
    """

    def __init__(
        self,
        counts: np.ndarray,
        *,
        smooth: Annotated[float, Field(gt=0)] = 1.0,
        per_image: bool = False,
        class_weights: ClassWeights = "none",
    ) -> None:
        super().__init__(counts, alpha=0.5, beta=0.5, smooth=smooth, per_image=per_image, class_weights=class_weights)


class LovaszSoftmax(nn.Module):
    """The convex extension of 1 - IoU from hard predictions to probabilities, averaged over classes. Berman et al., 2018,
    arXiv:1705.08790.

    Args:
        counts: as of `weigh_classes`.
        per_image: take each image as a region of its own instead of the whole batch.
        class_weights: none, balanced, median-frequency, or one number per class.
    """

    weight: Tensor | None

    def __init__(self, counts: np.ndarray, *, per_image: bool = False, class_weights: ClassWeights = "none") -> None:
        super().__init__()
        self.per_image = per_image
        self.register_buffer("weight", weigh_classes(class_weights, counts))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Shapes as in `petriscope.training.losses`, without shares of classes -> a scalar.

        Raises:
            RequestError: targets are shares of classes, which have no IoU.
        """
        if targets.is_floating_point():
            raise RequestError(
                "loss lovasz needs one class per target: leave mixup and cutmix out of augment, or choose another loss"
            )
        p, truth, labeled = regions(logits, targets, self.per_image)
        # Unlabeled pixels have error 0, so they are sorted to the end, where they add nothing.
        errors, order = torch.sort((truth - p).abs() * labeled, dim=2, descending=True)
        losses = (errors * _rises(truth.gather(2, order))).sum(2)
        return mean_over_present(losses, truth, self.weight)


@torch.no_grad()
def _rises(truth: Tensor) -> Tensor:
    """The increase of 1 - IoU with each further wrong pixel, float [R, K, P].

    Args:
        truth: 1 where a pixel is of the class, else 0; float [R, K, P], in order of decreasing errors.
    """
    area = truth.sum(2, keepdim=True)
    # Of the first pixels, all wrong, those of the class leave the intersection and the others enter the union.
    kept = area - truth.cumsum(2)
    union = area + (1 - truth).cumsum(2)
    loss = 1 - kept / union
    return torch.diff(loss, dim=2, prepend=torch.zeros_like(loss[:, :, :1]))


def regions(logits: Tensor, targets: Tensor, per_image: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities and truth of R regions of P pixels. R is B if each image is a region of its own, else 1.

    Args:
        logits, targets: shapes as in `petriscope.training.losses`.
        per_image: whether each image is a region of its own.

    Returns:
        probabilities: float [R, K, P].
        truth: float [R, K, P]; 0 where unlabeled.
        labeled: 1 where labeled, else 0; float [R, 1, P].
    """
    p = _rows(logits.softmax(1), per_image)
    if targets.is_floating_point():
        truth = _rows(targets, per_image)
        return p, truth, torch.ones_like(truth[:, :1])
    labeled = targets != IGNORE if logits.ndim > 2 else torch.ones_like(targets, dtype=torch.bool)
    numbers = _rows(torch.where(labeled, targets, 0)[:, None], per_image)
    known = _rows(labeled[:, None].to(p.dtype), per_image)
    truth = torch.zeros_like(p).scatter_(1, numbers, known)
    return p, truth, known


def _rows(maps: Tensor, per_image: bool) -> Tensor:
    """[B, K] or [B, K, H, W] -> [B, K, P] or [1, K, B P]."""
    rows = maps.flatten(2) if maps.ndim == 4 else maps[:, :, None]
    return rows if per_image else rows.transpose(0, 1).flatten(1)[None]


def mean_over_present(losses: Tensor, truth: Tensor, weight: Tensor | None) -> Tensor:
    """The mean of losses, float [R, K], over the classes that occur in each region's truth, float [R, K, P], weighted by
    class, float [K]; 0 if no region has any class."""
    shares = (truth.sum(2) > 0).to(losses.dtype)
    if weight is not None:
        shares = shares * weight
    return (losses * shares).sum() / shares.sum().clamp_min(torch.finfo(losses.dtype).tiny)
