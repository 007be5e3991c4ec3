"""Rotation and translation. Pixels from beyond the border are mirrored."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from petriscope.augment.base import identity
from petriscope.augment.corruptions.draws import Draws
from petriscope.augment.geometry import resample


def rotation(images: Tensor, degrees: Tensor, draws: Draws) -> Tensor:
    """Rotate by ``degrees`` in a random direction."""
    return resample(images, turns(degrees, images.shape, draws))


def translation(images: Tensor, fraction: Tensor, draws: Draws) -> Tensor:
    """Shift by ``fraction`` of the shorter side in a random direction."""
    return resample(images, shifts(fraction, images.shape, draws))


def turns(degrees: Tensor, shape: torch.Size, draws: Draws) -> Tensor:
    """The map of each image for `rotation`, [B, 3, 3]; images are ``shape``, [..., H, W]."""
    angle = torch.deg2rad(degrees) * torch.where(draws.uniform() < 0.5, 1.0, -1.0)
    matrices = identity(len(degrees), degrees.device)
    matrices[:, 0, 0] = matrices[:, 1, 1] = angle.cos()
    matrices[:, 0, 1], matrices[:, 1, 0] = -angle.sin(), angle.sin()
    return matrices


def shifts(fraction: Tensor, shape: torch.Size, draws: Draws) -> Tensor:
    """The map of each image for `translation`, [B, 3, 3]; images are ``shape``, [..., H, W]."""
    angle = draws.uniform() * 2 * math.pi
    pixels = fraction * min(shape[-2:])
    matrices = identity(len(fraction), fraction.device)
    matrices[:, 0, 2], matrices[:, 1, 2] = pixels * angle.cos(), pixels * angle.sin()
    return matrices
