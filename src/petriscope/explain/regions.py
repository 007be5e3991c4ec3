"""Which pixels of an image are asked about, where a model gives a class to each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from petriscope.metrics.segmentation import background_of

if TYPE_CHECKING:
    from petriscope.inference.predictor import Predictor

CHUNK_PIXELS = 2**19  # of images looked at together: each pixel has one probability per class


def predicted_masks(predictor: Predictor, images: np.ndarray) -> np.ndarray:
    """uint8 [B, H, W, C] -> the class predicted for each pixel without test-time augmentation, uint8 [B, H, W]."""
    out = np.zeros(images.shape[:3], dtype=np.uint8)
    for part in _chunks(images):
        out[part] = predictor.probabilities(images[part], tta="none").argmax(1)
    return out


def largest_class(masks: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    """The class that has most pixels of each mask, int64 [B]; the background only where there is nothing else.

    Args:
        masks: uint8 [B, H, W].
        classes: their names.
    """
    counts = np.array([np.bincount(mask.reshape(-1), minlength=len(classes)) for mask in masks], dtype=np.int64)
    counts = counts.reshape(len(masks), len(classes))
    background = background_of(classes)
    if background is None:
        return counts.argmax(1)
    counts[:, background] = 0
    return np.where(counts.any(1), counts.argmax(1), background)


def mean_probability(predictor: Predictor, images: np.ndarray, classes: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Of a class over a region of each image, without test-time augmentation, float64 [B]; 0 where the region is empty.

    Args:
        images: uint8 [B, H, W, C].
        classes: int64 [B].
        regions: bool [B, H, W].
    """
    out = np.zeros(len(images))
    for part in _chunks(images):
        found = predictor.probabilities(images[part], tta="none")
        of_class = found[np.arange(len(found)), classes[part]] * regions[part]
        out[part] = of_class.sum((1, 2)) / np.maximum(regions[part].sum((1, 2)), 1)
    return out


def _chunks(images: np.ndarray) -> Iterator[slice]:
    size = max(1, CHUNK_PIXELS // max(1, images.shape[1] * images.shape[2]))
    for start in range(0, len(images), size):
        yield slice(start, start + size)
