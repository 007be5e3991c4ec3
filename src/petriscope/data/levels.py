"""Stored values brought to the levels that are kept: 256 of uint8, or 65,536 of uint16."""

from __future__ import annotations

from functools import cache as cache_result

import numpy as np

from petriscope.core.channels import FULL

BRIGHT = 0.01  # share of the pixels of an image that may be brighter than data.bits allows
LOOKED_UP = 1 << 20  # values at a time


def to_levels(values: np.ndarray, bits: int, depth: int, span: tuple[float, float] | None = None) -> np.ndarray:
    """Values as uint8 in 0..255, or uint16 in 0..65535, rounded to the nearest.

    Args:
        values: uint8; uint16 in 0..2**bits-1; floats in 0..1; or, with a span, any numbers. Values beyond are clipped.
        bits: significant bits of uint16.
        depth: 8 or 16, of the result.
        span: the values that become 0 and the largest level.
    """
    full, dtype = FULL[depth], np.uint8 if depth == 8 else np.uint16
    if span is not None:
        low, high = span
        return np.rint(((values.astype(np.float64) - low) * (full / (high - low))).clip(0, full)).astype(dtype)
    if values.dtype == np.uint8:
        return values if depth == 8 else values.astype(np.uint16) * 257  # so that 255 becomes 65535
    if values.dtype.kind == "u":
        return scale_16_bit(values, bits, depth)
    return np.rint(values.astype(np.float64) * full).astype(dtype)


def from_levels(levels: np.ndarray, bits: int, span: tuple[float, float] | None = None) -> np.ndarray:
    """Values of which `to_levels`, with the depth of ``levels``, makes these: the same type; float64 with a span."""
    full = int(np.iinfo(levels.dtype).max)
    if span is not None:
        return span[0] + levels * ((span[1] - span[0]) / full)
    if levels.dtype == np.uint8 or bits == 16:
        return levels
    return np.rint(levels * ((2**bits - 1) / full)).astype(levels.dtype)


def scale_16_bit(values: np.ndarray, bits: int, depth: int = 8) -> np.ndarray:
    """Scale values in 0..2**bits-1 to uint8 in 0..255, or uint16 in 0..65535 for a depth of 16, rounded to the nearest; larger
    ones, up to 65535, become the largest."""
    if depth == bits:
        return values.astype(np.uint16)
    table = _scale(bits, depth)
    flat, out = values.reshape(-1), np.empty(values.shape, dtype=table.dtype)
    for start in range(0, flat.size, LOOKED_UP):
        out.reshape(-1)[start : start + LOOKED_UP] = table[flat[start : start + LOOKED_UP]]
    return out


@cache_result
def _scale(bits: int, depth: int) -> np.ndarray:
    """The value with ``depth`` bits of each with 16, uint8 or uint16 [65536]."""
    top, full = 2**bits - 1, FULL[depth]
    values = np.minimum(np.arange(1 << 16), top)
    return ((values * full + top // 2) // top).astype(np.uint8 if depth == 8 else np.uint16)


def too_bright(values: np.ndarray, bits: int) -> bool:
    """Whether values are brighter than so many bits allow. A few of them, such as hot pixels, are clipped.

    Raises:
        ValueError: there are more than a few.
    """
    count = int(np.count_nonzero(values > 2**bits - 1))
    if count > max(1, BRIGHT * values.size):
        raise ValueError(
            f"its brightest pixel, {values.max()}, is more than data.bits={bits} allows; increase data.bits"
        )
    return count > 0
