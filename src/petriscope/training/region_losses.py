"""Losses of whole regions: how far a class's predicted pixels and its true ones cover each other.

A batch counts as one region of pixels per class, or each image as its own. Labels are masks of one pixel. Classes that the
truth does not have are left out of the mean.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from petriscope.core.errors import RequestError
from petriscope.core.masks import IGNORE
from petriscope.training.losses import ClassWeights, weigh_classes

Share = Annotated[float, Field(ge=0)]


class TverskyLoss(nn.Module):
    """(1 - TP / (TP + alpha FP + beta FN))^(1 / gamma), with TP, FP and FN summed over probabilities, the mean over
    classes. Salehi et al., 2017, arXiv:1706.05721; gamma above 1 makes it the focal one of Abraham and Khan, 2018,
    arXiv:1810.07842, whose gamma is 4/3.

    Args:
        counts: training images per class, [K], or pixels of each class in each image, [N, K].
        alpha: what a false positive costs.
        beta: what a false negative costs; more than alpha favors recall.
        gamma: 1 is the plain loss.
        smooth: pixels added to numerator and denominator, so that a region of few pixels has no wild gradient.
        per_image: each image a region of its own, rather than the batch.
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
        """Logits, float [B, K] or [B, K, H, W]; targets as of `petriscope.training.losses.CrossEntropy` -> a scalar."""
        p, truth, labeled = regions(logits, targets, self.per_image)
        p = p * labeled
        hit = (p * truth).sum(2)
        wrong, missed = p.sum(2) - hit, truth.sum(2) - hit
        index = (hit + self.smooth) / (hit + self.alpha * wrong + self.beta * missed + self.smooth)
        # At 0 the root has no slope.
        losses = (1 - index).clamp_min(1e-6) ** (1 / self.gamma) if self.gamma > 1 else 1 - index
        return mean_over_present(losses, truth, self.weight)


class DiceLoss(TverskyLoss):
    """1 - 2 TP / (2 TP + FP + FN), the mean over classes: Tversky's with alpha and beta of 1/2. Milletari et al., 2016,
    "V-Net", arXiv:1606.04797, here without the squares in the denominator.

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
    """The convex extension of 1 - IoU from hard predictions to probabilities, the mean over classes. Berman et al., 2018,
    arXiv:1705.08790.

    Args:
        counts: training images per class, [K], or pixels of each class in each image, [N, K].
        per_image: each image a region of its own, rather than the batch.
        class_weights: none, balanced, median-frequency, or one number per class.
    """

    weight: Tensor | None

    def __init__(self, counts: np.ndarray, *, per_image: bool = False, class_weights: ClassWeights = "none") -> None:
        super().__init__()
        self.per_image = per_image
        self.register_buffer("weight", weigh_classes(class_weights, counts))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits, float [B, K] or [B, K, H, W]; targets int64 [B] or [B, H, W] -> a scalar.

        Raises:
            RequestError: targets are shares of classes, which have no IoU.
        """
        if targets.is_floating_point():
            raise RequestError("loss lovasz needs one class a target; leave out what mixes them: mixup, cutmix")
        p, truth, labeled = regions(logits, targets, self.per_image)
        # What is unlabeled has no error, so it is sorted to the end, where it changes nothing.
        errors, order = torch.sort((truth - p).abs() * labeled, dim=2, descending=True)
        losses = (errors * _rises(truth.gather(2, order))).sum(2)
        return mean_over_present(losses, truth, self.weight)


@torch.no_grad()
def _rises(truth: Tensor) -> Tensor:
    """How much 1 - IoU rises with each pixel that is wrong besides those before it, float [R, K, P].

    Args:
        truth: 1 where a pixel is of the class, in order of falling errors, float [R, K, P].
    """
    area = truth.sum(2, keepdim=True)
    # When the first pixels are wrong: the class's among them no longer intersect, the others join the union.
    kept = area - truth.cumsum(2)
    union = area + (1 - truth).cumsum(2)
    loss = 1 - kept / union
    return torch.diff(loss, dim=2, prepend=torch.zeros_like(loss[:, :, :1]))


def regions(logits: Tensor, targets: Tensor, per_image: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Lay pixels in rows: probabilities and truth, float [R, K, P], and which are labeled, float [R, 1, P]; R is 1, or B
    where each image is a region. Truth is 0 where unlabeled.

    Args:
        logits: float [B, K] or [B, K, H, W].
        targets: int64 [B] or [B, H, W], or the share of each class, float [B, K].
    """
    p = _rows(logits.softmax(1), per_image)
    if targets.is_floating_point():
        truth = _rows(targets, per_image)
        return p, truth, torch.ones_like(truth[:, :1])
    labeled = targets != IGNORE if targets.ndim == 3 else torch.ones_like(targets, dtype=torch.bool)
    numbers = _rows(torch.where(labeled, targets, 0)[:, None], per_image)
    known = _rows(labeled[:, None].to(p.dtype), per_image)
    truth = torch.zeros_like(p).scatter_(1, numbers, known)
    return p, truth, known


def _rows(maps: Tensor, per_image: bool) -> Tensor:
    """[B, K] or [B, K, H, W] -> [B, K, P] or [1, K, B P]."""
    rows = maps.flatten(2) if maps.ndim == 4 else maps[:, :, None]
    return rows if per_image else rows.transpose(0, 1).flatten(1)[None]


def mean_over_present(losses: Tensor, truth: Tensor, weight: Tensor | None) -> Tensor:
    """The weighted mean of losses [R, K] over the classes that each region's truth [R, K, P] has; 0 where none has any."""
    shares = (truth.sum(2) > 0).to(losses.dtype)
    if weight is not None:
        shares = shares * weight
    return (losses * shares).sum() / shares.sum().clamp_min(torch.finfo(losses.dtype).tiny)
