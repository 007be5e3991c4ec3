"""Where masks pass from one class to another."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from petriscope.core.masks import IGNORE

REACH = 3.0  # sigmas from a border at which a pixel counts as far from all


def border_pixels(masks: Tensor) -> Tensor:
    """Which pixels have a neighbor above, below, left or right of another class, bool [B, H, W].

    Args:
        masks: int [B, H, W]. An unlabeled pixel has no class, so where classes end in it there is no border.
    """
    out = torch.zeros_like(masks, dtype=torch.bool)
    labeled = masks != IGNORE
    for dim in (1, 2):
        length = masks.shape[dim] - 1
        first, second = masks.narrow(dim, 0, length), masks.narrow(dim, 1, length)
        differ = (first != second) & labeled.narrow(dim, 0, length) & labeled.narrow(dim, 1, length)
        out.narrow(dim, 0, length).logical_or_(differ)
        out.narrow(dim, 1, length).logical_or_(differ)
    return out


def near_borders(masks: Tensor, sigma: float) -> Tensor:
    """exp(-d^2 / (2 sigma^2)), d the distance in pixels to the nearest border pixel: float32 [B, H, W], 1 on a border, and
    0 where none is within three sigma.

    Args:
        masks: int [B, H, W].
        sigma: in pixels.
    """
    reach = math.ceil(REACH * sigma)
    far = float(reach * reach + 1)
    # The squared distance is a sum over rows and columns, so its minimum is found along one and then the other.
    squares = torch.where(border_pixels(masks), 0.0, far)
    squares = _nearest_along(_nearest_along(squares, 1, reach, far), 2, reach, far)
    return torch.where(squares < far, torch.exp(squares / (-2 * sigma * sigma)), 0.0)


def _nearest_along(squares: Tensor, dim: int, reach: int, far: float) -> Tensor:
    """The least of squares [B, H, W] plus the square of the step, over steps up to ``reach`` along a dimension."""
    length = squares.shape[dim]
    padded = F.pad(squares, (0, 0, reach, reach) if dim == 1 else (reach, reach), value=far)
    out = squares
    for step in range(-reach, reach + 1):
        out = torch.minimum(out, padded.narrow(dim, reach + step, length) + step * step)
    return out
