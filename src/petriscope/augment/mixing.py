"""Mixing the images of a batch with one another: MixUp, CutMix and copy-paste."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from petriscope.augment.base import Classes, Mixing, Probability, chosen, of_classes
from petriscope.core.device import upload

Alpha = Annotated[float, Field(ge=0)]


class MixUp(Mixing):
    """Blend each image with another of the batch, share * image + (1 - share) * other, and its target likewise.
    Zhang et al., 2018, arXiv:1710.09412.

    Args:
        alpha: the share is drawn from Beta(alpha, alpha) for each image; 0 mixes nothing.
        p: share of the images that are mixed.
    """

    for_masks = False  # a mask has one class per pixel

    def __init__(self, *, alpha: Alpha = 0.2, p: Probability = 1.0) -> None:
        self.alpha, self.p = alpha, p

    def __call__(
        self, images: Tensor, targets: Tensor, generator: torch.Generator, dense: bool
    ) -> tuple[Tensor, Tensor]:
        share, partner = _draw(len(images), self.alpha, self.p, generator)
        share, partner = upload(share, images.device), upload(partner, images.device)
        mixed = torch.lerp(images[partner], images, share[:, None, None, None])
        return mixed, torch.lerp(targets[partner], targets, share[:, None])


class CutMix(Mixing):
    """Paste a rectangle of another image of the batch at the same place. Labels are mixed by area; masks are pasted with
    the pixels. Yun et al., 2019, arXiv:1905.04899.

    The rectangle has the aspect ratio of the image, and its center is uniform over the image, so it may lie partly
    outside; only the area inside counts.

    Args:
        alpha: the share of the image that is kept is drawn from Beta(alpha, alpha) for each image; 0 mixes nothing.
        p: share of the images that are mixed.
    """

    def __init__(self, *, alpha: Alpha = 1.0, p: Probability = 0.5) -> None:
        self.alpha, self.p = alpha, p

    def __call__(
        self, images: Tensor, targets: Tensor, generator: torch.Generator, dense: bool
    ) -> tuple[Tensor, Tensor]:
        batch, _, height, width = images.shape
        share, partner = _draw(batch, self.alpha, self.p, generator)
        side = (1 - share).sqrt()
        rows, columns = _span(side, height, generator), _span(side, width, generator)
        pasted = rows[:, :, None] * columns[:, None, :]
        kept = 1 - pasted.flatten(1).mean(1)
        partner, pasted, kept = (upload(t, images.device) for t in (partner, pasted, kept))
        # the lerp of 0 and 1 is exact, and ten times as fast as torch.where on a broadcast condition
        mixed = torch.lerp(images, images[partner], pasted[:, None])
        if dense:
            return mixed, torch.where(pasted > 0, targets[partner], targets)
        return mixed, torch.lerp(targets[partner], targets, kept[:, None])


class CopyPaste(Mixing):
    """Paste all pixels of some classes from another image of the batch, with their mask, at the same place. Ghiasi et al.,
    2021, arXiv:2012.07177. For rare classes: the other image is drawn from those that have pixels of these classes.

    Args:
        classes: indices of the classes.
        p: share of the images that are pasted into; none if no image of the batch has these classes.
    """

    for_labels = False

    def __init__(
        self,
        *,
        classes: Classes,
        p: Probability = 0.5,
    ) -> None:
        self.classes, self.p = classes, p

    def __call__(
        self, images: Tensor, targets: Tensor, generator: torch.Generator, dense: bool
    ) -> tuple[Tensor, Tensor]:
        falls = upload(chosen(len(images), self.p, generator), images.device)
        which = upload(torch.rand(len(images), generator=generator), images.device)
        pasted = of_classes(targets, self.classes)
        # The holder of a drawn number is found by counting, because reading which images hold something would wait for
        # the device. Without any holder the partner is the last image, of which nothing is pasted.
        holders = pasted.flatten(1).any(1).cumsum(0)
        count = holders[-1]
        number = torch.minimum((which * count).long(), count - 1)
        partner = (holders <= number[:, None]).sum(1).clamp_max(len(images) - 1)
        there = pasted[partner] & falls[:, None, None]
        mixed = torch.lerp(images, images[partner], there[:, None].to(images.dtype))
        return mixed, torch.where(there, targets[partner], targets)


def _draw(batch: int, alpha: float, p: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The share each image keeps, float32 [B], and the image it is mixed with, int64 [B]."""
    falls = chosen(batch, p, generator)
    partner = torch.randperm(batch, generator=generator)
    if alpha == 0:
        return torch.ones(batch), partner
    seed = int(torch.randint(2**31, (), generator=generator))  # torch draws no Beta from a generator of one's own
    share = torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, batch).astype(np.float32))
    return torch.where(falls, share, torch.ones(())), partner


def _span(side: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """Which of ``length`` pixels a stretch of ``side`` (a share of the length) covers, 0 or 1, float32 [B, length]."""
    reach = torch.round(side * length)
    start = torch.floor(torch.rand(len(side), generator=generator) * length) - torch.floor(reach / 2)
    at = torch.arange(length)
    return ((at >= start[:, None]) & (at < (start + reach)[:, None])).float()
