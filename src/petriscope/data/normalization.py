"""Mean and standard deviation of the training images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from petriscope.data.imageset import ImageSet


def mean_and_std(
    images: ImageSet, change: Callable[[np.ndarray], np.ndarray] = lambda images: images, chunk: int = 1024
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the standard deviation of each channel over all pixels, in 0..1. A constant channel gets a deviation of
    1/255.

    Args:
        change: of blocks of images, uint8 [B, H, W, C], before they are counted.

    Pixels are counted by value, so the result is exact and does not depend on the order of the images or on ``chunk``.
    """
    channels = images.shape[2]
    counts = np.zeros((channels, 256), dtype=np.int64)
    for start in range(0, len(images), chunk):
        block = change(images.take(np.arange(start, min(start + chunk, len(images)))))
        for channel in range(channels):
            counts[channel] += np.bincount(block[..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ values
    variance = (share * (values - mean[:, None]) ** 2).sum(1)
    return tuple(map(float, mean)), tuple(map(float, np.maximum(np.sqrt(variance), 1 / 255)))
