"""Trains a small network on the set that is audited, without any download."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from petriscope.augment.pipeline import Normalize
from petriscope.core.device import choose_device
from petriscope.core.drawing import fit_within, resize_images
from petriscope.core.recipe import Recipe
from petriscope.data.batches import Batches
from petriscope.data.imageset import ImageSet
from petriscope.data.normalization import mean_and_std
from petriscope.models import build_model
from petriscope.training.loop import Trainer

CHUNK = 512


def shrink(images: ImageSet, side: int) -> ImageSet:
    """The set in memory, its images' longer side at most ``side`` and no side shorter than 8; small images stay."""
    height, width, _ = images.shape
    size = fit_within(height, width, side, shortest=8)
    if size == (height, width):
        return images if not images.mapped else replace(images, pixels=images.images, rows=None)
    out = np.empty((len(images), *size, images.shape[2]), images.pixels.dtype)
    for start in range(0, len(images), CHUNK):
        block = images.take(np.arange(start, min(start + CHUNK, len(images))))
        out[start : start + len(block)] = resize_images(block, size)
    return replace(images, pixels=out, rows=None)


def train_small(
    images: ImageSet, recipe: Recipe, on_epoch: Callable[[], None] = lambda: None
) -> tuple[nn.Module, Normalize]:
    """Train by a recipe without val. The ``data`` section of the recipe is not used.

    Args:
        images: with labels, in memory.
        recipe: its seed decides the initial weights and all random draws.
        on_epoch: called after each epoch.

    Returns:
        The model in eval mode on its device, and the normalization of its images.
    """
    torch.manual_seed(int(np.random.SeedSequence([recipe.seed, 0]).generate_state(1)[0]))
    device = choose_device(recipe.training.device)
    model = build_model(recipe.model, len(images.classes), images.shape).to(device)
    normalize = Normalize(*mean_and_std(images))
    batches = Batches(images, device)
    trainer = Trainer(model, recipe, batches, None, normalize, on_epoch=lambda history: on_epoch(), quiet=True)
    model.load_state_dict(trainer.fit())
    return model.eval(), normalize
