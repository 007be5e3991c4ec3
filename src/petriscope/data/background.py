"""The color of the background of images, computed without torch; see `petriscope.data.appearance`."""

from __future__ import annotations

import numpy as np

SIDE = 32  # approximate number of cells per side that quantiles are computed from
BACKGROUND = 0.95  # quantile of the brightness that is taken for the background


def background_colors(images: np.ndarray) -> np.ndarray:
    """The rounded color of the background, [N, C], of images, uint8 or uint16 [N, H, W, C]: channel by channel a quantile over
    means of cells. It is that of `petriscope.data.appearance.background`."""
    n, height, width, channels = images.shape
    step = cell_side(height, width)
    rows, columns = height // step, width // step
    cells = images[:, : rows * step, : columns * step].reshape(n, rows, step, columns, step, channels)
    sums = cells.sum((2, 4), dtype=np.int64).reshape(n, rows * columns, channels)
    place = quantile_rank(BACKGROUND, rows * columns) - 1
    values = np.partition(sums, place, axis=1)[:, place] / step**2
    return np.rint(values.round(3)).astype(images.dtype)


def cell_side(height: int, width: int) -> int:
    """Pixels per side of a cell, over which noise does not count as brightness."""
    return max(1, min(height, width) // SIDE)


def quantile_rank(share: float, count: int) -> int:
    """The place of a quantile among so many ascending values, counted from 1."""
    return 1 + round(share * (count - 1))
