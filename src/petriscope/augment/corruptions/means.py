"""Means that do not depend on how the work is divided."""

from __future__ import annotations

from torch import Tensor

from petriscope.core.device import widest


def steady_mean(images: Tensor, dims: tuple[int, ...], keepdim: bool = False) -> Tensor:
    """The mean of float32 images over ``dims``, float32.

    Summed in double precision, so that it is the same however many cores share the sum; Apple's GPUs have no doubles.
    """
    return images.to(widest(images.device)).mean(dims, keepdim=keepdim).float()
