"""Convert stored masks to class indices per pixel, with unlabeled pixels marked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from petriscope.core.errors import DataError, RequestError, near
from petriscope.core.masks import BACKGROUND, IGNORE
from petriscope.core.recipe import DataSection
from petriscope.data.decode import resize
from petriscope.data.imageset import ImageSet
from petriscope.data.sources.arrays import convert
from petriscope.data.sources.labels import name_numbers


def build_mask_sets(
    pixels: dict[str, np.ndarray],
    masks: dict[str, np.ndarray],
    names: Sequence[str] | None,
    section: DataSection,
    source: str,
    warnings: list[str],
    groups: dict[str, np.ndarray] | None = None,
) -> dict[str, ImageSet]:
    """Make image sets from arrays of images and of masks. The ids of the images are ``split/index``.

    Args:
        pixels: split -> images, as `petriscope.data.sources.arrays.convert` takes them.
        masks: split -> stored masks, as `check_masks` takes them, of the images' height and width.
        names: the names of the values from 0; None if the source has only numbers.
        groups: split -> strings [N].

    Raises:
        DataError: masks have another type, size or range.
    """
    checked = {split: check_masks(array, f"{split}_masks of {source}") for split, array in masks.items()}
    for split, array in checked.items():
        if array.shape != pixels[split].shape[:3]:
            raise DataError(
                f"{source}: the {split} masks have shape {list(array.shape)} and the images "
                f"{list(pixels[split].shape)}; a mask must have the height and width of its image"
            )
    targets, classes = name_values(checked, names, section, source)
    ready = convert(pixels, section, source, warnings)
    return {
        split: ImageSet(
            pixels=array,
            targets=resize_masks(targets[split], (array.shape[1], array.shape[2])),
            classes=classes,
            ids=np.array([f"{split}/{index}" for index in range(len(array))]),
            groups=None if groups is None else groups[split],
        )
        for split, array in ready.items()
    }


def check_masks(masks: np.ndarray, where: str) -> np.ndarray:
    """Check stored masks and convert them to uint8 [N, H, W].

    Args:
        masks: [N, H, W], [N, H, W, 1] or [N, 1, H, W], whole numbers from 0 to 255 (or booleans).
        where: their name in messages.

    Raises:
        DataError: the masks have another shape or type, or a value out of range.
    """
    if masks.ndim == 4 and 1 in (masks.shape[1], masks.shape[3]):
        masks = masks[..., 0] if masks.shape[3] == 1 else masks[:, 0]
    if masks.ndim != 3:
        raise DataError(f"{where} have shape {list(masks.shape)}; masks are [N, H, W], one class number per pixel")
    if masks.dtype.kind not in "iub":
        raise DataError(f"{where} have type {masks.dtype}; masks are whole numbers from 0: save them as uint8")
    if masks.dtype == np.uint8:
        return masks
    for index, mask in enumerate(masks):
        if mask.size and not 0 <= mask.min() <= mask.max() <= 255:
            raise DataError(
                f"{where}: mask {index} has values from {mask.min()} to {mask.max()}; they must be class numbers from 0 to "
                "254, and 255 for unlabeled pixels"
            )
    return masks.astype(np.uint8)


def name_values(
    masks: dict[str, np.ndarray], names: Sequence[str] | None, section: DataSection, where: str
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The class indices of all splits and the names of the classes. The class ``section.ignore`` becomes `IGNORE`.

    Args:
        masks: split -> uint8 [N, H, W] as stored; 255 always means unlabeled.
        names: the names of the values from 0; None if the source has only numbers, which ``section.classes`` may name.

    Raises:
        DataError: a value is out of range.
        RequestError: ``section.classes`` or ``section.ignore`` do not fit.
    """
    known = IGNORE if names is None else len(names)
    for split, array in masks.items():
        wrong = np.arange(256) >= known
        wrong[IGNORE] = False
        for index, mask in enumerate(array):
            if (bad := wrong[mask]).any():
                raise DataError(
                    f"{where}: the mask of {split} image {index} has the value {mask[bad][0]}; there are {known} classes "
                    f"({', '.join(names or ())}), counted from 0, and 255 means unlabeled"
                )
    values = {split: _values(array) for split, array in masks.items()}
    if not any(len(part) for part in values.values()):
        raise DataError(f"{where}: the masks have no labeled pixel")
    placed, classes = name_numbers(values, names, section, where)
    table = np.full(256, IGNORE, dtype=np.uint8)
    for split, part in values.items():
        table[part] = placed[split]
    ignored = _ignored(classes, named=names is not None or section.classes is not None, section=section, where=where)
    if ignored is not None:
        shifted = np.where(table > ignored, table - 1, table)
        table = np.where((table == ignored) | (table == IGNORE), IGNORE, shifted).astype(np.uint8)
        classes = tuple(name for index, name in enumerate(classes) if index != ignored)
    same = np.array_equal(table[table != IGNORE], np.flatnonzero(table != IGNORE)) and ignored is None
    return {split: array if same else table[array] for split, array in masks.items()}, classes


def resize_masks(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize masks to (height, width) by nearest neighbor, uint8 [N, *size]."""
    if masks.shape[1:] == size:
        return np.ascontiguousarray(masks)
    return np.stack([resize(mask[..., None], size, "nearest")[..., 0] for mask in masks])


def _values(masks: np.ndarray) -> np.ndarray:
    """The values that occur, except `IGNORE`, int64, ascending."""
    there = np.zeros(256, dtype=bool)
    for mask in masks:
        there[mask.reshape(-1)] = True
    return np.flatnonzero(there[:IGNORE])


def _ignored(classes: tuple[str, ...], named: bool, section: DataSection, where: str) -> int | None:
    """The index of the class ``section.ignore``, or None."""
    wanted = section.ignore
    if wanted is None or wanted == IGNORE:
        return None
    if isinstance(wanted, int):
        if wanted >= len(classes):
            raise RequestError(f"data.ignore is {wanted}, but {where} has {len(classes)} classes, counted from 0")
        return wanted
    if wanted in classes:
        return classes.index(wanted)
    if wanted == BACKGROUND and not named:
        return 0  # for values without names, the background is 0 by convention
    raise RequestError(f"data.ignore: {where} has no class {wanted!r}; {near(wanted, classes)}")
