"""Stochastic depth."""

from __future__ import annotations

import torch
from torch import Tensor


def drop_path(change: Tensor, chance: float, training: bool) -> Tensor:
    """Leave out the change that a residual block makes for some images of a batch, and scale the others to keep the mean.

    Huang et al., 2016, "Deep Networks with Stochastic Depth", arXiv:1603.09382. timm's ``drop_path`` draws other numbers
    from the same seed, so runs would not be reproduced with it.

    Args:
        change: float [B, C, H, W].
        chance: of leaving it out for an image, 0 <= chance < 1.
    """
    if not training or not chance:
        return change
    stay = torch.rand(len(change), 1, 1, 1, device=change.device) >= chance
    return change * (stay / (1 - chance)).to(change.dtype)
