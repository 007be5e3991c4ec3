"""Mean and standard deviation of the training images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from petriscope.core.channels import FULL
from petriscope.data.imageset import ImageSet


def mean_and_std(
    images: ImageSet, change: Callable[[np.ndarray], np.ndarray] = lambda images: images, chunk: int = 1024
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the standard deviation of each channel over all pixels, in 0..1. A constant channel gets the deviation of
    one level, 1/255 or 1/65535.

    Args:
        change: of blocks of images, uint8 or uint16 [B, H, W, C], before they are counted.

    Pixels are counted by value, so the result is exact and does not depend on the order of the images or on ``chunk``.
    """
    channels, full = images.shape[2], FULL[images.bits]
    counts = np.zeros((channels, full + 1), dtype=np.int64)
    blocks = (images.take(np.arange(start, min(start + chunk, len(images)))) for start in range(0, len(images), chunk))
    if images.padded:  # what was added to images does not count
        blocks = (images.window(row)[None] for row in range(len(images)))
    for block in map(change, blocks):
        for channel in range(channels):
            counts[channel] += np.bincount(block[..., channel].ravel(), minlength=full + 1)
    values = np.arange(full + 1) / full
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ values
    variance = (share * (values - mean[:, None]) ** 2).sum(1)
    return tuple(map(float, mean)), tuple(map(float, np.maximum(np.sqrt(variance), 1 / full)))
