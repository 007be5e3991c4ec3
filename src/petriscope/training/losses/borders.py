"""Weights of the pixels near borders between classes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from petriscope.core.masks import border_pixels

REACH = 3.0  # in sigmas; pixels farther than this from every border get no extra weight


def near_borders(masks: Tensor, sigma: float) -> Tensor:
    """exp(-d^2 / (2 sigma^2)), where d is the distance in pixels to the nearest border pixel.

    Args:
        masks: int [B, H, W].
        sigma: in pixels.

    Returns:
        float32 [B, H, W]: 1 at a border, and 0 where no border lies within three sigma.
    """
    reach = math.ceil(REACH * sigma)
    far = float(reach * reach + 1)
    # The squared distance is a sum over rows and columns, so its minimum is found along one and then the other.
    squares = torch.where(border_pixels(masks), 0.0, far)
    squares = _nearest_along(_nearest_along(squares, 1, reach, far), 2, reach, far)
    return torch.where(squares < far, torch.exp(squares / (-2 * sigma * sigma)), 0.0)


def _nearest_along(squares: Tensor, dim: int, reach: int, far: float) -> Tensor:
    """The minimum of ``squares``, float [B, H, W], plus the square of the step, over steps up to ``reach`` along ``dim``."""
    length = squares.shape[dim]
    padded = F.pad(squares, (0, 0, reach, reach) if dim == 1 else (reach, reach), value=far)
    out = squares
    for step in range(-reach, reach + 1):
        out = torch.minimum(out, padded.narrow(dim, reach + step, length) + step * step)
    return out
