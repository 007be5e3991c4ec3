"""Mars terrain in the layout of ``mars_for_students.npz``: images and masks in one array, in the order they were taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from petriscope.core.errors import DataError
from petriscope.core.recipe import DataSection
from petriscope.data.imageset import ImageSet
from petriscope.data.sources.mask_values import build_mask_sets

TRAIN, NAMES, TEST = "training_set", "training_names", "test_set"
CLASSES = ("background", "soil", "bedrock", "sand", "big rock")
BLOCK = 60  # neighboring images can show the same scene


def is_mars(names: set[str]) -> bool:
    """Whether a file with arrays of these names has this layout."""
    return TRAIN in names


def read(
    load: Callable[[str], np.ndarray], names: set[str], path: Path, section: DataSection, warnings: list[str]
) -> dict[str, ImageSet]:
    """Read one image set without splits. Its groups are blocks of ``section.block`` (default 60) consecutive images, so that a
    scene stays in one split.

    Args:
        load: gives an array by its name.
        names: the names of the arrays: ``training_set``, uint8 [N, 2, H, W], an image and its mask with values that index
            `CLASSES`; optionally ``training_names``, [N] strings. ``test_set`` has no masks and is left out.

    Raises:
        DataError: the array has another shape or type.
    """
    pairs = load(TRAIN)
    if pairs.ndim != 4 or pairs.shape[1] != 2 or pairs.dtype != np.uint8 or not pairs.size:
        raise DataError(
            f"{path}: {TRAIN} has type {pairs.dtype} and shape {list(pairs.shape)}; it must be uint8 [N, 2, H, W]: "
            "each image and its mask"
        )
    if TEST in names:
        warnings.append(f"{TEST} of {path} has no masks and was left out; petriscope predict can segment such images")
    block = section.block or BLOCK
    groups = {"all": np.array([f"block {index // block}" for index in range(len(pairs))])}
    pixels, masks = {"all": np.ascontiguousarray(pairs[:, 0])}, {"all": pairs[:, 1]}
    sets = build_mask_sets(pixels, masks, CLASSES, section, str(path), warnings, groups)
    if NAMES in names:
        sets["all"] = _named(sets["all"], load(NAMES), path)
    return sets


def _named(images: ImageSet, names: np.ndarray, path: Path) -> ImageSet:
    if names.shape != (len(images),) or names.dtype.kind not in "US":
        raise DataError(f"{path}: {NAMES} has type {names.dtype} and shape {list(names.shape)}; it must be [N] strings")
    ids = names.astype(str)
    # Several crops of one image share its name.
    return images if len(np.unique(ids)) < len(ids) else replace(images, ids=ids)
