"""Mars terrain in the layout of ``mars_for_students.npz``: images and masks in one array, in the order they were taken."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from petriscope.core.errors import DataError
from petriscope.core.recipe import DataSection
from petriscope.data.imageset import ImageSet
from petriscope.data.omissions import LeftOutSentence, Omission
from petriscope.data.sources.mask_values import build_mask_sets
from petriscope.data.sources.npz_file import NpzFile

TRAIN, NAMES, TEST = "training_set", "training_names", "test_set"
CLASSES = ("background", "soil", "bedrock", "sand", "big rock")
BLOCK = 60  # neighboring images can show the same scene


def is_mars(names: set[str]) -> bool:
    """Whether a file with arrays of these names has this layout."""
    return TRAIN in names


def read(archive: NpzFile, section: DataSection, warnings: list[str]) -> dict[str, ImageSet]:
    """Read one image set without splits. Its groups are blocks of ``section.block`` (default 60) consecutive images, so that a
    scene stays in one split.

    Args:
        archive: with the array ``training_set``, uint8 [N, 2, H, W], an image and its mask with values that index `CLASSES`;
            and optionally ``training_names``, [N] strings. ``test_set`` has no masks and is left out.

    Raises:
        DataError: the array has another shape or type.
    """
    path, names = archive.path, archive.names
    pairs = archive.load(TRAIN)
    if pairs.ndim != 4 or pairs.shape[1] != 2 or pairs.dtype != np.uint8 or not pairs.size:
        raise DataError(
            f"{path}: {TRAIN} has type {pairs.dtype} and shape {list(pairs.shape)}; it must be uint8 [N, 2, H, W]: "
            "each image and its mask"
        )
    if TEST in names:
        text = f"{TEST} of {path} has no masks and was left out; petriscope predict can segment such images"
        count = next(iter(archive.inspect(TEST).shape), 0)
        warnings.append(LeftOutSentence(text, [Omission("images without masks", count, TEST)]))
    if unused := sorted(names - {TRAIN, NAMES, TEST}) + archive.others:
        text = f"{path} also has {', '.join(unused[:12])}, which are not read"
        warnings.append(LeftOutSentence(text, [Omission("arrays that are not read", len(unused), unused[0])]))
    block = section.block or BLOCK
    groups = {"all": np.array([f"block {index // block}" for index in range(len(pairs))])}
    pixels, masks = {"all": np.ascontiguousarray(pairs[:, 0])}, {"all": pairs[:, 1]}
    sets = build_mask_sets(pixels, masks, CLASSES, section, str(path), warnings, groups)
    if NAMES in names:
        sets["all"] = _named(sets["all"], archive)
    return sets


def _named(images: ImageSet, archive: NpzFile) -> ImageSet:
    found = archive.inspect(NAMES)
    if found.shape != (len(images),) or found.dtype.kind not in "US":
        raise DataError(
            f"{archive.path}: {NAMES} has type {found.dtype} and shape {list(found.shape)}; it must be [N] strings"
        )
    ids = archive.texts(NAMES)
    # Several crops of one image share its name.
    return images if len(np.unique(ids)) < len(ids) else replace(images, ids=ids)
