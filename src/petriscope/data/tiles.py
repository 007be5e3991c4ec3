"""Large images in tiles: places of overlapping tiles, their pixels, and one map blended from what a model says of each.

This module is one that packages carry, so it imports numpy alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

AT_ONCE = 2**24  # values of maps that a model gives at a time: 64 MiB


def padded(image: np.ndarray, size: tuple[int, int], fill: int = 0) -> np.ndarray:
    """An image or a mask, [H, W, ...], in the top left corner of a larger one of ``size`` (height, width)."""
    if image.shape[:2] == size:
        return image
    out = np.full((*size, *image.shape[2:]), fill, dtype=image.dtype)
    out[: image.shape[0], : image.shape[1]] = image
    return out


def starts(length: int, tile: int, overlap: float) -> list[int]:
    """Where tiles begin along a side of an image. Neighbors overlap by ``overlap`` of their side, the last one by more, so
    that it ends with the image. An image that is not longer than a tile has one."""
    if length <= tile:
        return [0]
    step = max(tile - round(overlap * tile), 1)
    return [*range(0, length - tile, step), length - tile]


def cut(image: np.ndarray, top: int, left: int, size: tuple[int, int], fill: int | None = None) -> np.ndarray:
    """A tile of an image, [H, W, ...] -> [*size, ...]. What is missing below and to the right of a smaller image is mirrored,
    or has the value ``fill``."""
    part = image[top : top + size[0], left : left + size[1]]
    lacking = [(0, size[axis] - part.shape[axis]) for axis in (0, 1)]
    if not any(after for _, after in lacking):
        return part
    edges = [*lacking, *[(0, 0)] * (image.ndim - 2)]
    return np.pad(part, edges, "symmetric") if fill is None else np.pad(part, edges, constant_values=fill)


def blended(
    predict: Callable[[np.ndarray], np.ndarray], image: np.ndarray, size: tuple[int, int], overlap: float, classes: int
) -> Iterator[tuple[int, np.ndarray]]:
    """The map of an image of any size from those of its tiles, from top to bottom.

    Where tiles overlap, the mean of their maps is taken, with weights that rise linearly from the border of a tile to the end
    of the overlap. In memory is a band of the height of a tile: classes x height of a tile x width of the image.

    Args:
        predict: tiles, uint8 [B, *size, C] -> maps, float32 [B, K, *size].
        image: uint8 [H, W, C].
        size: height and width of a tile.
        overlap: of neighbors, in units of the side, 0 to 0.5.
        classes: K.

    Yields:
        the first row of a band and its map, float32 [K, rows, W]. The bands follow one another and cover the image.
    """
    height, width = image.shape[:2]
    rows, columns = (starts(length, tile, overlap) for length, tile in zip((height, width), size, strict=True))
    weight = np.outer(*(_weights(tile, round(overlap * tile)) for tile in size))
    band = np.zeros((classes, size[0], max(width, size[1])), np.float32)
    total = np.zeros(band.shape[1:], np.float32)
    most = max(AT_ONCE // (classes * size[0] * size[1]), 1)
    for top, below in pairwise([*rows, height]):
        for first in range(0, len(columns), most):
            some = columns[first : first + most]
            maps = predict(np.stack([cut(image, top, left, size) for left in some]))
            for left, each in zip(some, maps, strict=True):
                band[:, :, left : left + size[1]] += each * weight
                total[:, left : left + size[1]] += weight
        done = below - top
        yield top, band[:, :done, :width] / total[:done, :width]
        for array in (band, total):
            array[..., : size[0] - done, :] = array[..., done:, :].copy()
            array[..., max(size[0] - done, 0) :, :] = 0


def _weights(tile: int, overlap: int) -> np.ndarray:
    """The weights of a tile along one side, float32 [tile], above 0."""
    inward = np.minimum(np.arange(tile), np.arange(tile)[::-1]) + 1
    return np.minimum(inward / (overlap + 1), 1).astype(np.float32)
