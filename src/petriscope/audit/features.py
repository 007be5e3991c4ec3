"""Features of pictures, by which they are told to be alike: learned from the set itself, a run's, or a backbone's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from petriscope.audit.small_network import shrink, train_small
from petriscope.augment.pipeline import Normalize
from petriscope.data.batches import Batches
from petriscope.data.imageset import ImageSet
from petriscope.errors import RequestError
from petriscope.models.layers import head_of
from petriscope.precision import choose_device
from petriscope.progress import progress
from petriscope.recipe import Recipe, check_recipe

SIDE = 28
EPOCHS = 4
RECIPE = {
    "name": "features",
    "augment": [{"name": "translate", "fraction": 0.08}, {"name": "flip", "vertical": 0.5}],
    "model": {"name": "simple-cnn", "norm": "batch", "widths": [32, 64, 128], "hidden": 64},
    "loss": {"name": "cross-entropy", "label_smoothing": 0.1},
    "optimizer": {"name": "adamw", "lr": 4e-3, "weight_decay": 0.05},
    "schedule": "one-cycle",
    "training": {"epochs": EPOCHS, "batch_size": 128, "ema": None, "keep": "last", "precision": "fp32"},
}


def learned_features(images: ImageSet, *, seed: int = 0, quiet: bool = True) -> np.ndarray:
    """Features of a small network trained for a few epochs on the set's own labels.

    Args:
        images: pictures are shrunk to 28 pixels first.
        seed: same seed, same features (on a CPU, with one number of threads).
        quiet: show no progress.

    Returns:
        float32 [N, D].
    """
    small = shrink(images, SIDE)
    recipe = check_recipe({**RECIPE, "seed": seed})
    with progress("learning features", EPOCHS, "epochs") as bar:
        model, normalize = train_small(small, recipe, lambda: None if quiet else bar.advance(1))
    return _features(model, normalize, small, quiet)


def run_features(path: str | Path, images: ImageSet, *, quiet: bool = True) -> np.ndarray:
    """Features of a trained run: what its last layer is given. float32 [N, D].

    Args:
        path: a run folder, or a model file.
        images: of any size; they are resized to what the model takes.

    Raises:
        RequestError: no model there, or its pictures have other channels.
    """
    raise NotImplementedError


def backbone_features(name: str, images: ImageSet, *, weights: str = "pretrained", quiet: bool = True) -> np.ndarray:
    """Features of a published network: what its last layer is given. float32 [N, D].

    Args:
        name: as a recipe names it: ``resnet18``, ``timm/NAME``.
        weights: ``pretrained``, ``none``, or the path of a .safetensors file.

    Raises:
        RequestError: an unknown name, or weights that do not fit.
        PetriscopeError: the weights cannot be had.
    """
    raise NotImplementedError


def _features(model: nn.Module, normalize: Normalize, images: ImageSet, quiet: bool) -> np.ndarray:
    raise NotImplementedError
