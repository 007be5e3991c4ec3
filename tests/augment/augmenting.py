"""Images for the tests of augmentation, and a recipe's parts carried out on them."""

import numpy as np
import torch

from petriscope.augment.pipeline import Pipeline
from petriscope.core.recipe import Part

CLASSES = 8


def some_images(batch=16, height=12, width=12, channels=3, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (batch, height, width, channels), dtype=np.uint8)
    return torch.from_numpy(noise)


def run(name, images, seed=0, **options):
    """Augmented images as float [B, C, H, W] in [0, 1]."""
    out = augmented([Part(name=name, **options)], images, seed)
    return plain(out) if out.dtype == torch.uint8 else out


def augmented(parts, images, seed=0):
    return with_targets(parts, images, labels(len(images)), seed)[0]


def with_targets(parts, images, targets, seed=0):
    pipeline = Pipeline.from_recipe(parts, classes=CLASSES, dense=targets.ndim == 3)
    return pipeline(images, targets, torch.Generator().manual_seed(seed))


def labels(batch):
    return torch.arange(batch) % CLASSES


def plain(images):
    return (images.float() / 255).permute(0, 3, 1, 2)
