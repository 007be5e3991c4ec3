"""Regions that explanations of segmentation models are about: the pixels predicted as a class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from petriscope.metrics.segmentation import background_of

if TYPE_CHECKING:
    from petriscope.inference.predictor import Predictor

CHUNK_PIXELS = 2**19  # predicted at a time; each pixel has one probability per class


def predicted_masks(predictor: Predictor, images: np.ndarray) -> np.ndarray:
    """The predicted masks, uint8 [B, H, W], of images, uint8 [B, H, W, C], without test-time augmentation."""
    out = np.zeros(images.shape[:3], dtype=np.uint8)
    for part in _chunks(images):
        out[part] = predictor.probabilities(images[part], tta="none").argmax(1)
    return out


def largest_class(masks: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    """The class with the most pixels in each mask, int64 [B]. The background is chosen only if there is no other class.

    Args:
        masks: uint8 [B, H, W].
        classes: K names.
    """
    counts = np.array([np.bincount(mask.reshape(-1), minlength=len(classes)) for mask in masks], dtype=np.int64)
    counts = counts.reshape(len(masks), len(classes))
    background = background_of(classes)
    if background is None:
        return counts.argmax(1)
    counts[:, background] = 0
    return np.where(counts.any(1), counts.argmax(1), background)


def mean_probability(predictor: Predictor, images: np.ndarray, classes: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Mean probability of a class over a region of each image, without test-time augmentation, float64 [B]; 0 if the region is
    empty.

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
