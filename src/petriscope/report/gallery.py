"""Images as training saw them, and images as an autoencoder reconstructs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from petriscope.core.names import SPLITS
from petriscope.core.recipe import Recipe
from petriscope.models import MODELS
from petriscope.report import wording
from petriscope.report.charts import Thumbnail, thumbnail

AUGMENTED_SHOWN = (12, 12)  # images, versions of each


@dataclass(frozen=True)
class Strip:
    """A row of images, and what it shows in words."""

    label: str
    images: list[Thumbnail]


@dataclass(frozen=True)
class Reconstruction:
    """An image and its reconstruction."""

    shown: Thumbnail
    made: Thumbnail
    id: str
    error: str


@dataclass(frozen=True)
class Reconstructions:
    """Images of a split and their reconstructions.

    Args:
        mean: mean squared error; ``flat``: that of giving each image its mean color alone.
        trained: whether the decoder was trained.
    """

    split: str
    shown: list[Reconstruction]
    mean: str
    flat: str
    trained: bool


def augmented(gallery: Mapping[str, np.ndarray], overlays: Sequence[Sequence[np.ndarray]]) -> list[Strip]:
    """Strips of training images and their augmented versions.

    Args:
        overlays: per strip, the same images with their targets drawn on them, uint8 [H, W, 3]; empty where targets
            are not drawn. Each is shown below its strip.
    """
    images = gallery.get("augmented")
    if images is None or not images.size:
        return []
    rows, columns = AUGMENTED_SHOWN
    strips = []
    for k, row in enumerate(images[:rows, :columns]):
        label = f"Training image {k + 1} and {wording.plural(len(row) - 1, 'augmented version')}"
        strips.append(Strip(label, list(map(thumbnail, row))))
        if k < len(overlays):
            label = f"Targets of training image {k + 1} and of its augmented versions"
            strips.append(Strip(label, list(map(thumbnail, overlays[k][:columns]))))
    return strips


def reconstructions(gallery: Mapping[str, np.ndarray], recipe: Recipe) -> Reconstructions | None:
    """Images and what the decoder made of them; None for models without a decoder."""
    split = next((name for name in SPLITS if f"reconstructions_{name}" in gallery), None)
    if split is None:
        return None
    pairs = gallery[f"reconstructions_{split}"]
    ids = gallery.get(f"reconstructions_{split}_ids", np.full(len(pairs), ""))
    plain, made = (pairs[:, k].astype(np.float64) / 255 for k in (0, 1))
    errors = ((plain - made) ** 2).mean((1, 2, 3))
    flat = ((plain - plain.mean((1, 2), keepdims=True)) ** 2).mean()
    shown = [
        Reconstruction(thumbnail(before), thumbnail(after), str(key), wording.decimal(float(error)))
        for (before, after), key, error in zip(pairs, ids, errors, strict=True)
    ]
    mean = wording.decimal(float(errors.mean()))
    return Reconstructions(split, shown, mean, wording.decimal(float(flat)), trains_decoder(recipe))


def has_decoder(recipe: Recipe) -> bool:
    return recipe.model.name in MODELS.members and hasattr(MODELS.find(recipe.model.name), "reconstruct")


def trains_decoder(recipe: Recipe) -> bool:
    return recipe.model.options.get("reconstruction") != 0
