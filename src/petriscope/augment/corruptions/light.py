"""Light and color: exposure, contrast, saturation, a color cast."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from petriscope.augment.base import constant
from petriscope.augment.color import luma
from petriscope.augment.corruptions.draws import Draws
from petriscope.augment.corruptions.means import steady_mean


def exposure(images: Tensor, factor: Tensor, draws: Draws) -> Tensor:
    """Multiply by ``factor``; values above 1 are clipped."""
    return images * _wide(factor)


def contrast(images: Tensor, factor: Tensor, draws: Draws) -> Tensor:
    """Multiply the distance from the image's mean gray by ``factor``."""
    mean = steady_mean(_gray(images), (1, 2, 3))
    return _wide(mean) + (images - _wide(mean)) * _wide(factor)


def saturation(images: Tensor, factor: Tensor, draws: Draws) -> Tensor:
    """Multiply the distance of a color from its gray by ``factor``, or divide it, with equal probability."""
    factor = torch.where(draws.uniform() < 0.5, factor, 1 / factor)
    gray = _gray(images)
    return gray + (images - gray) * _wide(factor)


def color_cast(images: Tensor, amount: Tensor, draws: Draws) -> Tensor:
    """Multiply the channels by 1 + ``amount`` times a random direction that keeps brightness, as of another lamp or
    stain. Gray images do not change."""
    if images.shape[1] == 1:
        return images
    angle = draws.uniform(1) * 2 * math.pi + constant((0, 2, 4), images.device) * (math.pi / 3)
    return images * (1 + amount[:, None] * angle.cos())[:, :, None, None]


def _gray(images: Tensor) -> Tensor:
    """[B, 1, H, W]."""
    if images.shape[1] == 1:
        return images
    weights = luma(3).tolist()
    return (weights[0] * images[:, 0] + weights[1] * images[:, 1] + weights[2] * images[:, 2])[:, None]


def _wide(values: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1]."""
    return values[:, None, None, None]
