"""How much each class counts in a loss."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from petriscope.core.errors import RequestError

ClassWeights = Literal["none", "balanced", "median-frequency"] | tuple[Annotated[float, Field(ge=0)], ...]


def weigh_classes(rule: ClassWeights, counts: np.ndarray) -> Tensor | None:
    """Weights of the classes.

    Args:
        rule: ``balanced``: inversely proportional to the number of images of the class, so that every class has the same
            weight in an epoch and the mean weight of an image is 1. ``median-frequency``: the median class frequency
            divided by the frequency of the class. There a frequency is the share of the class in the pixels of the images
            that contain it, so a class that is rare because few images contain it gains less (Eigen and Fergus, 2015,
            arXiv:1411.4734). Or the weights themselves, one per class.
        counts: int [K], training images per class; for masks int [N, K], pixels per image and class.

    Returns:
        float32 [K], or None for ``none``.

    Raises:
        RequestError: the number of weights is not the number of classes.
    """
    total = counts.sum(0) if counts.ndim == 2 else counts
    if rule == "none":
        return None
    if rule == "balanced":
        return torch.from_numpy(total.sum() / (len(total) * np.maximum(total, 1))).float()
    if rule == "median-frequency":
        return torch.from_numpy(_median_over_frequency(counts, total)).float()
    if len(rule) != len(total):
        raise RequestError(f"loss.class_weights has {len(rule)} numbers for {len(total)} classes")
    return torch.tensor(rule)


def _median_over_frequency(counts: np.ndarray, total: np.ndarray) -> np.ndarray:
    """float64 [K]; 1 for a class that no image has."""
    if counts.ndim == 2:
        room = np.where(counts > 0, counts.sum(1, keepdims=True), 0).sum(0)
    else:
        room = np.full(len(total), total.sum())
    frequency = total / np.maximum(room, 1)
    there = frequency > 0
    median = np.median(frequency[there]) if there.any() else 1.0
    return np.where(there, median / np.where(there, frequency, 1.0), 1.0)
