"""Posterize, solarize, invert, equalize, auto-contrast and sharpness, which the policies draw too. On whole bytes they
agree with Pillow's, except for `equalize`, which also works on small images."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from petriscope.augment.base import Pixelwise, Probability, change_some, chosen, uniform


class Posterize(Pixelwise):
    """Keep only the upper bits of each byte; their number is drawn from [bits, 8]."""

    def __init__(self, *, bits: Annotated[int, Field(ge=1, le=8)] = 4, p: Probability = 0.5) -> None:
        self.bits, self.p = bits, p

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        bits = torch.randint(self.bits, 9, (len(images),), generator=generator).float()
        return change_some(images, chosen(len(images), self.p, generator), posterize, bits)


class Solarize(Pixelwise):
    """Invert values above a threshold from [threshold, 1], in units of the full range."""

    def __init__(self, *, threshold: Probability = 0.5, p: Probability = 0.5) -> None:
        self.threshold, self.p = threshold, p

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        threshold = uniform(len(images), self.threshold, 1, generator)
        return change_some(images, chosen(len(images), self.p, generator), solarize, threshold)


class Invert(Pixelwise):
    """Invert all values."""

    def __init__(self, *, p: Probability = 0.5) -> None:
        self.p = p

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return change_some(images, chosen(len(images), self.p, generator), invert)


class Equalize(Pixelwise):
    """Spread the values of each channel so that they are about equally frequent."""

    def __init__(self, *, p: Probability = 0.5) -> None:
        self.p = p

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return change_some(images, chosen(len(images), self.p, generator), equalize)


class AutoContrast(Pixelwise):
    """Stretch each channel so that its darkest pixel is 0 and its brightest 1."""

    def __init__(self, *, p: Probability = 0.5) -> None:
        self.p = p

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return change_some(images, chosen(len(images), self.p, generator), auto_contrast)


class Sharpness(Pixelwise):
    """Multiply the distance of pixels from their smoothed neighborhood by a factor from [1 - amount, 1 + amount]."""

    def __init__(self, *, amount: Annotated[float, Field(ge=0, le=2)] = 0.5, p: Probability = 0.5) -> None:
        self.amount, self.p = amount, p

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        factor = 1 + uniform(len(images), -self.amount, self.amount, generator)
        return change_some(images, chosen(len(images), self.p, generator), sharpness, factor)


# All functions below: images, float32 [B, C, H, W] in [0, 1], and one parameter per image, float32 [B] -> float32 [B, C, H, W].


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    step = torch.exp2(8 - bits)[:, None, None, None]
    # 0.5 is added because division by 255 may have left values slightly below whole bytes.
    return (images * 255).add_(0.5).div_(step).floor_().mul_(step).div_(255)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    above = (images > threshold[:, None, None, None]).float()
    return torch.lerp(images, 1 - images, above)


def invert(images: Tensor) -> Tensor:
    return 1 - images


def auto_contrast(images: Tensor) -> Tensor:
    images = images.clamp(0, 1)
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    flat = high - low < 1 / 255
    scale = torch.where(flat, 1.0, 1 / (high - low).clamp_min(1 / 255))
    return (images - torch.where(flat, 0.0, low)).mul_(scale)


def equalize(images: Tensor) -> Tensor:
    """By a table of 256 entries per channel, so pixels are returned as whole bytes. Pillow rounds the number of pixels per
    level down to an integer, which leaves images below 16 x 16 unchanged; here it is not rounded."""
    planes = (images.clamp(0, 1) * 255).round_().long().flatten(2).flatten(0, 1)
    counts = torch.zeros(len(planes), 256, device=images.device)
    counts.scatter_add_(1, planes, torch.ones(1, device=images.device).expand_as(planes))
    others = planes.shape[1] - counts.gather(1, planes.amax(1, keepdim=True))
    darker = counts.cumsum(1) - counts
    table = (darker * (255 / others) + 0.5).floor_().clamp_max_(255)
    table = torch.where(others == 0, torch.arange(256.0, device=images.device), table)
    return table.gather(1, planes).div_(255).view(images.shape)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """As Pillow's: the smoothed pixel is a mean in which the pixel has weight 5 and its neighbors 1. The outermost pixels
    do not change."""
    if min(images.shape[2:]) < 3:
        return images
    down = images[:, :, :-2] + images[:, :, 1:-1] + images[:, :, 2:]
    around = down[..., :-2] + down[..., 1:-1] + down[..., 2:]
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = (around + 4 * images[:, :, 1:-1, 1:-1]) / 13
    return torch.lerp(smooth, images, factor[:, None, None, None])
