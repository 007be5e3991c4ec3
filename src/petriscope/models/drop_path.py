"""Stochastic depth."""

from __future__ import annotations

import torch
from torch import Tensor


def drop_path(change: Tensor, chance: float, training: bool) -> Tensor:
    """Leave a residual block's change out for some images of a batch, and scale the others up to keep the mean.

    Huang et al., 2016, "Deep Networks with Stochastic Depth", arXiv:1603.09382.

    Args:
        change: float [B, C, H, W].
        chance: that an image goes without, 0 <= chance < 1.
    """
    if not training or not chance:
        return change
    stay = torch.rand(len(change), 1, 1, 1, device=change.device) >= chance
    return change * (stay / (1 - chance)).to(change.dtype)
