"""Images from elsewhere for a model that has its classes already: to be evaluated, not learnt from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from petriscope.core.errors import DataError, RequestError, near
from petriscope.core.masks import BACKGROUND, IGNORE
from petriscope.core.recipe import DataSection
from petriscope.data import sources
from petriscope.data.imageset import ImageSet
from petriscope.data.one_vs_rest import one_against_rest
from petriscope.data.sources import PILE


def load_aligned(
    section: DataSection, split: str, classes: tuple[str, ...], segments: bool = False
) -> tuple[ImageSet, list[str]]:
    """A split of a source, its targets counted as the model counts its classes.

    Args:
        section: the source, and the size and channels that the model takes.
        split: train, val or test; a source that is one pile is taken whole.
        classes: the model's. The source's classes are found among them by name; numbers stand for themselves. The
            source need not have all of them.
        segments: whether the model takes masks.

    Returns:
        the images, and what the user should know, a sentence each.

    Raises:
        RequestError: no such source.
        DataError: the source has no such split, targets of the other kind, or a class that the model does not know.
    """
    if section.source is None:
        raise RequestError(f"no data: give --data SOURCE. A source is {sources.KINDS}.")
    warnings: list[str] = []
    sets = sources.read(section.source, section, warnings)
    if set(sets) == {PILE}:
        images = sets[PILE]
    elif split in sets:
        images = sets[split]
    else:
        raise DataError(f"{section.source} has no {split} split; it has: {', '.join(sets)}. Choose one with --split")
    if not len(images):
        raise DataError(f"{section.source} has no images in {split}")
    if images.segments != segments:
        has, needs = ("masks", "labels") if images.segments else ("labels", "masks")
        raise DataError(f"{section.source} has {has}; this model was trained on {needs}")
    if segments and section.only in images.classes and images.classes != classes:
        images = one_against_rest(images, str(section.only), section.source)
    return _align(images, classes, section.source), warnings


def _align(images: ImageSet, classes: tuple[str, ...], source: str) -> ImageSet:
    if images.classes == classes:
        return images
    if images.segments:
        return _align_masks(images, classes, source)
    used = np.unique(images.targets)
    names = [images.classes[label] for label in used]
    if all(name.isdigit() for name in images.classes):
        index = [int(name) for name in names]
        if max(index) >= len(classes):
            raise DataError(
                f"{source} has the label {max(index)}; the model knows {len(classes)} classes, counted from 0"
            )
    else:
        for name in names:
            if name not in classes:
                raise DataError(
                    f"{source} has the class {name!r}, which the model does not know; {near(name, classes)}"
                )
        index = [classes.index(name) for name in names]
    place = np.zeros(int(used.max()) + 1, dtype=np.int64)
    place[used] = index
    return replace(images, targets=place[images.targets], classes=classes)


def _align_masks(images: ImageSet, classes: tuple[str, ...], source: str) -> ImageSet:
    """As `_align`, a pixel at a time; numbers stand for the model's classes in their order."""
    used = np.flatnonzero(images.counts)
    numbered = all(name.isdigit() for name in images.classes)
    table = np.full(256, IGNORE, dtype=np.uint8)
    for index in used:
        name = images.classes[index]
        if numbered and index >= len(classes):
            raise DataError(f"{source} has masks of {index + 1} classes; the model knows {len(classes)}")
        if not numbered and name not in classes:
            hint = (
                " Unlabeled ground is left out with --set data.ignore=NAME when training." if name == BACKGROUND else ""
            )
            raise DataError(
                f"{source} has the class {name!r}, which the model does not know; {near(name, classes)}{hint}"
            )
        table[index] = index if numbered else classes.index(name)
    return replace(images, targets=table[images.targets], classes=classes)
