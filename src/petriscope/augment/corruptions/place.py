"""Where a cell lies in its picture: turned, shifted. What comes in at the border is mirrored."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from petriscope.augment.corruptions.draws import Draws
from petriscope.augment.geometry import resample


def rotation(images: Tensor, degrees: Tensor, draws: Draws) -> Tensor:
    """Turn by ``degrees``, to either side."""
    angle = torch.deg2rad(degrees) * torch.where(draws.uniform() < 0.5, 1.0, -1.0)
    matrices = _still(images)
    matrices[:, 0, 0] = matrices[:, 1, 1] = angle.cos()
    matrices[:, 0, 1], matrices[:, 1, 0] = -angle.sin(), angle.sin()
    return resample(images, matrices)


def translation(images: Tensor, fraction: Tensor, draws: Draws) -> Tensor:
    """Shift by ``fraction`` of the shorter side, in any direction."""
    angle = draws.uniform() * 2 * math.pi
    pixels = fraction * min(images.shape[2:])
    matrices = _still(images)
    matrices[:, 0, 2], matrices[:, 1, 2] = pixels * angle.cos(), pixels * angle.sin()
    return resample(images, matrices)


def _still(images: Tensor) -> Tensor:
    return torch.eye(3, device=images.device).repeat(len(images), 1, 1)
