"""Pictures as training saw them, and as an autoencoder drew them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from petriscope.data.imageset import SPLITS
from petriscope.models import MODELS
from petriscope.recipe import Recipe
from petriscope.report import wording
from petriscope.report.figures import Picture, picture

AUGMENTED_SHOWN = (12, 12)


@dataclass(frozen=True)
class Reconstruction:
    """A picture, and what an autoencoder made of it."""

    shown: Picture
    made: Picture
    id: str
    error: str


def augmented(pictures: np.ndarray | None) -> list[list[Picture]]:
    if pictures is None or not pictures.size:
        return []
    rows, columns = AUGMENTED_SHOWN
    return [[picture(pixels) for pixels in row] for row in pictures[:rows, :columns]]


def reconstructions(gallery: dict[str, np.ndarray], recipe: Recipe) -> dict[str, Any] | None:
    """Pictures and what the decoder made of them; None for models that have no decoder."""
    split = next((name for name in SPLITS if f"reconstructions_{name}" in gallery), None)
    if split is None:
        return None
    pairs = gallery[f"reconstructions_{split}"]
    ids = gallery.get(f"reconstructions_{split}_ids", np.full(len(pairs), ""))
    plain, made = (pairs[:, k].astype(np.float64) / 255 for k in (0, 1))
    errors = ((plain - made) ** 2).mean((1, 2, 3))
    # What is left of the pictures if each is given by its mean color alone.
    flat = ((plain - plain.mean((1, 2), keepdims=True)) ** 2).mean()
    shown = [
        Reconstruction(picture(before), picture(after), str(key), wording.decimal(float(error)))
        for (before, after), key, error in zip(pairs, ids, errors, strict=True)
    ]
    return {
        "split": split,
        "shown": shown,
        "mean": wording.decimal(float(errors.mean())),
        "flat": wording.decimal(float(flat)),
        "trained": trains_decoder(recipe),
    }


def has_decoder(recipe: Recipe) -> bool:
    return recipe.model.name in MODELS.members and hasattr(MODELS.find(recipe.model.name), "reconstruct")


def trains_decoder(recipe: Recipe) -> bool:
    return recipe.model.options.get("reconstruction") != 0
