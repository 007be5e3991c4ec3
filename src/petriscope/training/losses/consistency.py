"""A loss that asks for the same prediction for an image and for its augmented views."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from petriscope.core.recipe import Part
from petriscope.training.losses import LOSSES, views_of

PLAIN = Part(name="cross-entropy")


def _checked(part: Part) -> Part:
    if views_of(part).count:
        raise ValueError("names a loss of labels, such as cross-entropy")
    LOSSES.check(part, f"loss.of ({part.name})")
    return part


class Consistency(nn.Module):
    """A loss of the images, plus the divergence between the predictions for them and for their views:
    ``{name: consistency, of: cross-entropy, weight: 12}``. Hendrycks et al., 2020, arXiv:1912.02781, whose views aug-mix
    makes. A step costs as much as ``1 + views`` ordinary ones.

    Args:
        counts: int [K], training images per class.
        of: the loss of the images, with its options.
        weight: of the divergence; 12 in the paper.
        views: number of views of each image; 2 in the paper.
        by: the augmentations of the recipe that make the views, in its order; the image itself is without them.
        label_views: whether the loss of the images is that of their views too, the mean over all; not in the paper.
    """

    def __init__(
        self,
        counts: np.ndarray,
        *,
        of: Annotated[Part, AfterValidator(_checked)] = PLAIN,
        weight: Annotated[float, Field(gt=0)] = 12.0,
        views: Annotated[int, Field(ge=1, le=8)] = 2,
        by: Annotated[tuple[str, ...], Field(min_length=1)] = ("aug-mix",),
        label_views: bool = False,
    ) -> None:
        super().__init__()
        self.of: nn.Module = LOSSES.build(of, counts)
        self.weight, self.views, self.label_views = weight, views, label_views

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of a batch and of its views.

        Args:
            logits: float [(1 + views) B, K], of the images first, then of their first views, and so on.
            targets: of the images; int64 [B], or the share of each class, float [B, K].
        """
        answers = logits.reshape(1 + self.views, len(targets), -1)
        labeled = answers if self.label_views else answers[:1]
        loss = self.of(labeled.flatten(0, 1), targets.repeat(len(labeled), *[1] * (targets.ndim - 1)))
        return loss + self.weight * jensen_shannon(answers)


def jensen_shannon(logits: Tensor) -> Tensor:
    """The Jensen-Shannon divergence of V predictions per image, in nats, averaged over images: between 0 and log V.

    Args:
        logits: float [V, B, K].
    """
    log_p = logits.log_softmax(2)
    log_mean = torch.logsumexp(log_p, 0) - math.log(len(logits))
    return (log_p.exp() * (log_p - log_mean)).sum(2).mean()
