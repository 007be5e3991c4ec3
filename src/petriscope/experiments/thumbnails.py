"""Small versions of images and masks for a run's report."""

from __future__ import annotations

import numpy as np

from petriscope.core.channels import Names
from petriscope.core.drawing import fit_within, resize_images, shown

LARGEST = 96  # pixels of the longer side


def shrink_images(images: np.ndarray, channels: Names = ()) -> np.ndarray:
    """Images, uint8 or uint16 [N, H, W, C], as `petriscope.core.drawing.shown` has them, shrunk so that no side is longer than
    `LARGEST`; smaller ones keep their size."""
    images = shown(images, channels)
    height, width = sides(images.shape[1:])
    if (height, width) == images.shape[1:3] or not len(images):
        return np.ascontiguousarray(images[:, :height, :width])
    return resize_images(images, (height, width))


def shrink_masks(masks: np.ndarray) -> np.ndarray:
    """Shrink masks, uint8 [N, H, W], to the same size as `shrink_images`, by nearest neighbor."""
    height, width = sides(masks.shape[1:])
    rows, columns = (
        (np.arange(new) * 2 + 1) * old // (2 * new) for new, old in zip((height, width), masks.shape[1:], strict=True)
    )
    return masks[:, rows[:, None], columns]


def sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """The (height, width) that `shrink_images` gives an image of this shape."""
    height, width = shape[:2]
    return fit_within(height, width, LARGEST)
