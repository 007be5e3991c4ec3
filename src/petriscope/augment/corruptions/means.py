"""Means that do not depend on how the work is divided."""

from __future__ import annotations

import torch
from torch import Tensor


def steady_mean(images: Tensor, dims: tuple[int, ...], keepdim: bool = False) -> Tensor:
    """The mean of float32 images over ``dims``, float32.

    Summed in double precision, so that it is the same however many cores share the sum; Apple's GPUs have no doubles.
    """
    wide = torch.float32 if images.device.type == "mps" else torch.float64
    return images.to(wide).mean(dims, keepdim=keepdim).float()
