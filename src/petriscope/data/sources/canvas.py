"""Fields over many images at once, from which the synthetic sources are drawn."""

from __future__ import annotations

from functools import cache

import numpy as np

Range = tuple[float, float]


class Canvas:
    """The pixel grid of n images, in units of the image side from the center, and the softness of their edges.

    Args:
        zoom: how much larger than in these units all is drawn, except for textures.
        blur: factor on the blur of the images.

    Attributes:
        y, x: float32 [1, H, 1] and [1, 1, W], pixel centers.
        soft: float32 [n, 1, 1], the width of an edge: one pixel and the blur of the image.
    """

    def __init__(
        self, rng: np.random.Generator, n: int, height: int, width: int, zoom: float = 1.0, blur: float = 1.0
    ) -> None:
        self.rng, self.n, self.height, self.width = rng, n, height, width
        self.side = min(height, width)
        self.y = _centers(height, self.side)[None, :, None] / np.float32(zoom)
        self.x = _centers(width, self.side)[None, None, :] / np.float32(zoom)
        self.soft = wide(np.hypot(1 / self.side, np.float32(blur) * uniform(rng, (0.005, 0.045), n)) / zoom)

    def texture(self, cells: int) -> np.ndarray:
        """Smooth noise of about unit variance, float32 [n, H, W], with blobs of 1/cells of a side."""
        down, across = spline(self.height, self.side, cells), spline(self.width, self.side, cells)
        knots = self.rng.standard_normal((self.n, down.shape[1], across.shape[1]), dtype=np.float32)
        return np.matmul(down, np.matmul(knots, across.T))

    def inside(self, squared: np.ndarray, radius: np.ndarray) -> np.ndarray:
        """The share of each pixel inside a shape, 0 to 1, from ``squared`` = (distance / radius)^2."""
        # Near the edge, the distance to it is about (squared - 1) / 2 * radius, which saves a square root.
        covered = squared - 1
        covered *= -wide(radius) / 2 / self.soft
        covered += 0.5
        return np.clip(covered, 0, 1, out=covered)


def uniform(rng: np.random.Generator, span: Range, shape: int | tuple[int, ...]) -> np.ndarray:
    return np.float32(span[0]) + np.float32(span[1] - span[0]) * rng.random(shape, dtype=np.float32)


def wide(values: np.ndarray) -> np.ndarray:
    """[n] as float32 [n, 1, 1], to broadcast over pixels."""
    return np.asarray(values, dtype=np.float32)[:, None, None]


def _centers(length: int, side: int) -> np.ndarray:
    """Pixel centers along one axis, float32 [length], in units of the side from the center."""
    return ((np.arange(length) + 0.5 - length / 2) / side).astype(np.float32)


@cache
def spline(length: int, side: int, cells: int) -> np.ndarray:
    """Weights of cubic B-spline knots at each pixel, float32 [length, knots]; unit variance from unit noise."""
    at = (np.arange(length) + 0.5) / side * cells
    distance = np.abs(at[:, None] - (np.arange(int(np.ceil(at[-1])) + 3) - 1))
    weights = np.where(distance < 1, 2 / 3 - distance**2 + distance**3 / 2, np.maximum(2 - distance, 0) ** 3 / 6)
    return (weights / np.sqrt(np.square(weights).sum(axis=1, keepdims=True))).astype(np.float32)
