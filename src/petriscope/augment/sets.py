"""A whole image set, augmented."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from petriscope.augment.base import Augmentation
from petriscope.augment.pipeline import Pipeline, to_bytes
from petriscope.data.imageset import ImageSet

CHUNK = 1024


def augmented_set(images: ImageSet, operations: Sequence[Augmentation]) -> ImageSet:
    """Augment every image of a set once, and its masks with it. The result is in memory and the same at every call.

    Args:
        images: the set.
        operations: any that do not mix images, so that labels stay valid.
    """
    pipeline = Pipeline(operations, len(images.classes), dense=images.task.dense)
    generator = torch.Generator().manual_seed(0)
    chunks = []
    for start in range(0, len(images), CHUNK):
        indices = np.arange(start, min(start + CHUNK, len(images)))
        targets = torch.from_numpy(images.targets[indices])
        batch, targets = pipeline(torch.from_numpy(images.take(indices)), targets, generator)
        chunks.append((to_bytes(batch).numpy(), targets.numpy()))
    pixels, moved = map(np.concatenate, zip(*chunks, strict=True))
    return replace(images, pixels=pixels, targets=moved, rows=None)
