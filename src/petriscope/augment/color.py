"""Brightness, contrast, saturation and hue: affine maps of color, multiplied into one map."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from petriscope.augment.base import Color, Magnitude, Probability, chosen, constant, uniform
from petriscope.core.device import upload
from petriscope.core.drawing import BT601

YIQ = (BT601, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))
CPU = torch.device("cpu")
Amount = Annotated[float, Field(ge=0, le=1)]

_FROM_YIQ = tuple(map(tuple, torch.linalg.inv(torch.tensor(YIQ)).tolist()))


def luma(channels: int, device: torch.device = CPU) -> Tensor:
    """Weights of the channels in gray, float32 [C]."""
    return constant(BT601 if channels == 3 else (1.0,), device)


class Brightness(Color):
    """Multiply by a factor from [1 - amount, 1 + amount]."""

    def __init__(self, *, amount: Amount = 0.2, p: Probability = 1.0) -> None:
        self.amount, self.p = amount, p

    def matrices(self, mean: Tensor, generator: torch.Generator) -> Tensor:
        return brightness(mean, _factor(mean, self.amount, self.p, generator))


class Contrast(Color):
    """Multiply the distance of colors from the image's mean gray by a factor from [1 - amount, 1 + amount]."""

    def __init__(self, *, amount: Amount = 0.2, p: Probability = 1.0) -> None:
        self.amount, self.p = amount, p

    def matrices(self, mean: Tensor, generator: torch.Generator) -> Tensor:
        return contrast(mean, _factor(mean, self.amount, self.p, generator))


class Saturation(Color):
    """Multiply the distance of colors from their own gray by a factor from [1 - amount, 1 + amount]. Gray does not change."""

    colors = "only"

    def __init__(self, *, amount: Amount = 0.2, p: Probability = 1.0) -> None:
        self.amount, self.p = amount, p

    def matrices(self, mean: Tensor, generator: torch.Generator) -> Tensor:
        return saturation(mean, _factor(mean, self.amount, self.p, generator))


class Hue(Color):
    """Shift hue by a fraction of the color circle from [-amount, amount]: a rotation of I and Q in YIQ, which keeps gray."""

    colors = "only"

    def __init__(self, *, amount: Annotated[float, Field(ge=0, le=0.5)] = 0.05, p: Probability = 1.0) -> None:
        self.amount, self.p = amount, p

    def matrices(self, mean: Tensor, generator: torch.Generator) -> Tensor:
        batch, channels = mean.shape
        angle = uniform(batch, -self.amount, self.amount, generator) * chosen(batch, self.p, generator) * (2 * math.pi)
        if channels == 1:
            return _matrix(mean.new_ones(batch, 1, 1))
        angle = upload(angle, mean.device)
        turn = _identity(mean).repeat(batch, 1, 1)
        turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
        turn[:, 1, 2], turn[:, 2, 1] = -angle.sin(), angle.sin()
        return _matrix(constant(_FROM_YIQ, mean.device) @ turn @ constant(YIQ, mean.device))


def brightness(mean: Tensor, factor: Tensor) -> Tensor:
    """Multiply colors by ``factor`` [B]; ``mean`` [B, C] and the result as in `Color.matrices`, on one device."""
    return _matrix(factor[:, None, None] * _identity(mean))


def contrast(mean: Tensor, factor: Tensor) -> Tensor:
    """Multiply the distance from the image's mean gray; arguments as of `brightness`."""
    channels = mean.shape[1]
    offset = ((1 - factor) * (mean @ luma(channels, mean.device)))[:, None].expand(-1, channels)
    return _matrix(factor[:, None, None] * _identity(mean), offset)


def saturation(mean: Tensor, factor: Tensor) -> Tensor:
    """Multiply the distance from the pixel's own gray; arguments as of `brightness`."""
    channels = mean.shape[1]
    factor = factor[:, None, None]
    gray = luma(channels, mean.device).expand(channels, channels)
    return _matrix(factor * _identity(mean) + (1 - factor) * gray)


def _factor(mean: Tensor, amount: Magnitude, p: Probability, generator: torch.Generator) -> Tensor:
    """One factor per image, float32 [B], on the device of ``mean``."""
    batch = len(mean)
    return upload(1 + uniform(batch, -amount, amount, generator) * chosen(batch, p, generator), mean.device)


def _identity(mean: Tensor) -> Tensor:
    """float32 [C, C]."""
    return torch.eye(mean.shape[1], device=mean.device)


def _matrix(linear: Tensor, offset: Tensor | None = None) -> Tensor:
    """[B, C, C] and [B, C] -> [B, C, C + 1]."""
    offset = linear.new_zeros(linear.shape[:2]) if offset is None else offset
    return torch.cat([linear, offset[:, :, None]], 2)


def unchanged(mean: Tensor) -> Tensor:
    """The color map that does nothing, [B, C, C + 1], for images of mean color [B, C]."""
    batch, channels = mean.shape
    return torch.eye(channels, channels + 1, device=mean.device).repeat(batch, 1, 1)


def mapped(colors: Tensor, matrices: Tensor) -> Tensor:
    """Colors [B, C] after the maps [B, C, C + 1]."""
    channels = colors.shape[1]
    return torch.baddbmm(matrices[:, :, channels:], matrices[:, :, :channels], colors[:, :, None])[:, :, 0]


def compose(first: Tensor, then: Tensor) -> Tensor:
    """The color map that applies ``first`` and then ``then``, each [B, C, C + 1]."""
    channels = first.shape[1]
    linear = then[:, :, :channels] @ first[:, :, :channels]
    offset = then[:, :, :channels] @ first[:, :, channels:] + then[:, :, channels:]
    return torch.cat([linear, offset], 2)


def apply_color(images: Tensor, matrices: Tensor) -> Tensor:
    """Map colors, float32 [B, C, H, W], by [B, C, C + 1]."""
    channels = images.shape[1]
    out = torch.baddbmm(matrices[:, :, channels:], matrices[:, :, :channels], images.flatten(2))
    return out.view(len(images), channels, *images.shape[2:])
