"""Drawn shapes of four kinds on gray ground, any of them in an image or none: an example of several labels per image."""

from __future__ import annotations

import numpy as np

from petriscope.core.errors import RequestError
from petriscope.core.recipe import DataSection
from petriscope.data.imageset import ImageSet

CLASSES = ("disk", "square", "triangle", "cross")
FREQUENCY = np.array([0.5, 0.4, 0.3, 0.15])  # of an image that has each; they are drawn independently
SIZE = (32, 32)
REACH = (0.1, 0.17)  # half the width of a shape, relative to the shorter side
NOISE = 12.0  # standard deviation, in gray levels
CHUNK = 256  # images that are drawn at a time


def read(section: DataSection, count: int = 1500) -> dict[str, ImageSet]:
    """Draw the data set, without splits.

    Args:
        section: its size (32 by 32 where it names none) and its channels (``auto`` is RGB) are used.
        count: images to draw.
    """
    images, targets = draw_shapes(count, section.height_width or SIZE)
    ids = np.array([f"shapes/{index:06d}" for index in range(count)], dtype=str)
    return {"all": ImageSet(images, targets, CLASSES, ids)}


def draw_shapes(count: int, size: tuple[int, int] = SIZE, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw images and their labels. Image i depends on ``seed``, i and ``size`` alone: a larger count only adds images.

    Returns:
        uint8 [N, H, W, 3] images, and uint8 [N, 4], 1 where an image has a shape of `CLASSES`.

    Raises:
        RequestError: the count is negative, or a side is shorter than a pixel.
    """
    height, width = size
    if count < 0 or height < 1 or width < 1:
        raise RequestError(f"{count} images of {height} by {width} pixels cannot be drawn")
    images = np.empty((count, height, width, 3), dtype=np.uint8)
    targets = np.empty((count, len(CLASSES)), dtype=np.uint8)
    for number, start in enumerate(range(0, count, CHUNK)):
        part = slice(start, min(start + CHUNK, count))
        drawn = _draw(np.random.default_rng([seed, number]), height, width)
        images[part], targets[part] = (each[: part.stop - start] for each in drawn)
    return images, targets


def _draw(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """`CHUNK` images and their labels."""
    side = min(height, width)
    y = ((np.arange(height) + 0.5 - height / 2) / side)[None, :, None]
    x = ((np.arange(width) + 0.5 - width / 2) / side)[None, None, :]
    targets = (rng.random((CHUNK, len(CLASSES))) < FREQUENCY).astype(np.uint8)
    pixels = np.repeat(rng.uniform(90, 160, (CHUNK, 1, 1, 1)), 3, axis=3) + np.zeros((CHUNK, height, width, 3))
    quarters = np.argsort(
        rng.random((CHUNK, len(CLASSES))), axis=1
    )  # of the image, one for each shape: none hides another
    for k in range(len(CLASSES)):
        reach = rng.uniform(*REACH, CHUNK)[:, None, None]
        rows, columns = np.divmod(quarters[:, k], 2)
        away = rng.uniform(-0.06, 0.06, (2, CHUNK))
        v, u = (
            (y - (rows / 2 - 0.25 + away[0])[:, None, None]) / reach,
            (x - (columns / 2 - 0.25 + away[1])[:, None, None]) / reach,
        )
        inside = _inside(k, v, u) & (targets[:, k, None, None] == 1)
        color = rng.uniform(0, 255, (CHUNK, 1, 1, 3))
        pixels = np.where(inside[..., None], color, pixels)
    noise = rng.normal(0, NOISE, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8), targets


def _inside(kind: int, v: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Which pixels a shape covers, bool [n, H, W]; ``v`` and ``u`` are 1 at its edge, down and right of its center."""
    if CLASSES[kind] == "disk":
        return u**2 + v**2 <= 1
    square = np.maximum(abs(u), abs(v))
    if CLASSES[kind] == "square":
        return square <= 0.9
    if CLASSES[kind] == "triangle":
        return (v <= 0.8) & (v >= 2 * abs(u) - 1)
    return (square <= 1) & (np.minimum(abs(u), abs(v)) <= 0.35)
