"""Random numbers per image: a function of the image's key and of the number of earlier draws, never of the batch."""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

GOLDEN = -7046029254386353131  # 2**64 / golden ratio, odd, as a signed integer


def image_keys(indices: Tensor, name: str, seed: int) -> Tensor:
    """One key per image, int64 [B], from its index in its set, int64 [B]."""
    return _scrambled(indices * GOLDEN + (seed << 32) + zlib.crc32(name.encode()))


class Draws:
    """A stream of draws for each image.

    A counter is scrambled by SplitMix64 (Steele, Lea and Flood, 2014, doi:10.1145/2714064.2660195), so an image's draws
    are the same whatever batch it is in, and on every device.

    Args:
        keys: int64 [B].
    """

    def __init__(self, keys: Tensor) -> None:
        self.keys, self._drawn = keys, 0

    def uniform(self, *shape: int) -> Tensor:
        """Each image's own draws from [0, 1), float32 [B, *shape]."""
        count = math.prod(shape)
        at = torch.arange(self._drawn + 1, self._drawn + 1 + count, device=self.keys.device)
        self._drawn += count
        bits = _scrambled(self.keys[:, None] + at * GOLDEN)
        return ((bits >> 40) & 0xFFFFFF).float().mul_(2**-24).view(len(self.keys), *shape)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal draws, float32 [B, *shape]. Box and Muller, 1958, doi:10.1214/aoms/1177706645."""
        count = math.prod(shape)
        first, second = self.uniform(2, (count + 1) // 2).unbind(1)
        radius = (-2 * (1 - first).log()).sqrt()
        angle = second * (2 * math.pi)
        return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :count].view(len(self.keys), *shape)


def _scrambled(bits: Tensor) -> Tensor:
    bits = (bits ^ _shifted(bits, 30)) * -4658895280553007687
    bits = (bits ^ _shifted(bits, 27)) * -7723592293110705685
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Shifted right, filled with zeros also for negative numbers."""
    return (bits >> by) & ((1 << (64 - by)) - 1)
