"""Noise and blur, as of a worse camera."""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from petriscope.augment.base import Magnitude, Pixelwise, Probability, chosen, elsewhere, uniform
from petriscope.core.device import upload


class Noise(Pixelwise):
    """Add Gaussian noise of a standard deviation from [0, std], in units of the full range."""

    def __init__(self, *, std: Magnitude = 0.05, p: Probability = 1.0) -> None:
        self.std, self.p = std, p

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        batch = len(images)
        std = uniform(batch, 0, self.std, generator) * chosen(batch, self.p, generator)
        there = elsewhere(images.device, generator)
        noise = torch.randn(images.shape, generator=there, device=images.device)
        return torch.addcmul(images, noise, upload(std, images.device)[:, None, None, None])


class Blur(Pixelwise):
    """Gaussian blur of a width from [0, sigma] pixels."""

    def __init__(self, *, sigma: Annotated[float, Field(ge=0, le=32)] = 1.0, p: Probability = 1.0) -> None:
        self.sigma, self.p = sigma, p

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        batch = len(images)
        sigma = uniform(batch, 0, self.sigma, generator) * chosen(batch, self.p, generator)
        return gaussian_blur(images, upload(sigma, images.device), reach=math.ceil(3 * self.sigma))


def gaussian_blur(images: Tensor, sigma: Tensor, reach: int) -> Tensor:
    """Blur each image by its own width.

    Args:
        images: float32 [B, C, H, W].
        sigma: float32 [B], in pixels; 0 leaves the image as it is.
        reach: taps to each side of the center; the image is mirrored at its border.
    """
    height, width = images.shape[2:]
    across = _blurring(width, sigma, reach)
    down = across if height == width else _blurring(height, sigma, reach)
    return down @ images @ across.transpose(2, 3)


def _blurring(side: int, sigma: Tensor, reach: int) -> Tensor:
    """The blur along one axis as a matrix, float32 [B, 1, side, side]. For small images two products with such a matrix
    are much faster than a sum over taps."""
    taps = min(reach, side - 1)
    offsets = torch.arange(-taps, taps + 1, device=sigma.device)
    weights = torch.exp(-0.5 * (offsets / sigma.clamp_min(1e-3)[:, None]) ** 2)
    weights /= weights.sum(1, keepdim=True)
    source = (torch.arange(side, device=sigma.device)[None, :] + offsets[:, None]).abs()
    source = torch.minimum(source, 2 * (side - 1) - source)  # mirrored at the first and last pixel
    takes = F.one_hot(source, side).float()
    return (weights @ takes.flatten(1)).view(-1, 1, side, side)
