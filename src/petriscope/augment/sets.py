"""A whole image set, augmented."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from petriscope.augment.base import Augmentation
from petriscope.augment.pipeline import Pipeline, to_whole
from petriscope.data.imageset import ImageSet

CHUNK = 1024


def augmented_set(images: ImageSet, operations: Sequence[Augmentation]) -> ImageSet:
    """Augment every image of a set once, and its masks with it. The result is in memory and the same at every call.

    Args:
        images: the set.
        operations: any that do not mix images, so that labels stay valid.
    """
    pipeline = Pipeline(operations, dense=images.task.dense, channels=images.channels)
    generator = torch.Generator().manual_seed(0)
    chunks = []
    for start in range(0, len(images), CHUNK):
        indices = np.arange(start, min(start + CHUNK, len(images)))
        targets = torch.from_numpy(images.targets[indices])
        plain = torch.from_numpy(images.take(indices))
        batch, targets = pipeline(plain, targets, generator)
        chunks.append((to_whole(batch, plain.dtype).numpy(), targets.numpy()))
    pixels, moved = map(np.concatenate, zip(*chunks, strict=True))
    return replace(images, pixels=pixels, targets=moved, rows=None)
