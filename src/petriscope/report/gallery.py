"""Images as training saw them, and as an autoencoder drew them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from petriscope.core.drawing import overlay
from petriscope.core.recipe import Recipe
from petriscope.data.imageset import SPLITS
from petriscope.models import MODELS
from petriscope.report import wording
from petriscope.report.charts import Thumbnail, thumbnail

AUGMENTED_SHOWN = (12, 12)


@dataclass(frozen=True)
class Reconstruction:
    """An image, and what an autoencoder made of it."""

    shown: Thumbnail
    made: Thumbnail
    id: str
    error: str


def augmented(gallery: dict[str, np.ndarray], classes: int) -> list[tuple[str, list[Thumbnail]]]:
    """Strips of a training image and its augmented versions, each with what it shows in words; under each strip, where
    targets are masks, theirs laid over them."""
    images, masks = gallery.get("augmented"), gallery.get("augmented_masks")
    if images is None or not images.size:
        return []
    rows, columns = AUGMENTED_SHOWN
    strips = []
    for number, row in enumerate(images[:rows, :columns]):
        strips.append((f"Training image {number + 1} and {len(row) - 1} augmented versions", list(map(thumbnail, row))))
        if masks is not None:
            painted = [thumbnail(overlay(*pair, classes)) for pair in zip(row, masks[number], strict=False)]
            strips.append((f"The masks of training image {number + 1} and of its versions", painted))
    return strips


def reconstructions(gallery: dict[str, np.ndarray], recipe: Recipe) -> dict[str, Any] | None:
    """Images and what the decoder made of them; None for models that have no decoder."""
    split = next((name for name in SPLITS if f"reconstructions_{name}" in gallery), None)
    if split is None:
        return None
    pairs = gallery[f"reconstructions_{split}"]
    ids = gallery.get(f"reconstructions_{split}_ids", np.full(len(pairs), ""))
    plain, made = (pairs[:, k].astype(np.float64) / 255 for k in (0, 1))
    errors = ((plain - made) ** 2).mean((1, 2, 3))
    # What is left of the images if each is given by its mean color alone.
    flat = ((plain - plain.mean((1, 2), keepdims=True)) ** 2).mean()
    shown = [
        Reconstruction(thumbnail(before), thumbnail(after), str(key), wording.decimal(float(error)))
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
