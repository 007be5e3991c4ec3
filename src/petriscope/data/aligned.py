"""Images from elsewhere for a model that has its classes already: to be evaluated or adapted to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from petriscope.core.errors import DataError, RequestError, near
from petriscope.core.masks import BACKGROUND, IGNORE
from petriscope.core.recipe import DataSection
from petriscope.data import sources
from petriscope.data.imageset import ImageSet
from petriscope.data.one_vs_rest import one_vs_rest
from petriscope.data.sources import UNSPLIT
from petriscope.tasks import Task


def load_aligned(section: DataSection, split: str, classes: tuple[str, ...], task: Task) -> tuple[ImageSet, list[str]]:
    """One split of a source, with targets that index the classes of a model.

    Args:
        section: the source, and the size and channels that the model takes.
        split: train, val or test; a source without splits is taken whole.
        classes: the model's. The source's classes are found among them by name; numbers stand for themselves. The
            source need not have all of them.
        task: the model's.

    Returns:
        the images, and what the user should know, one sentence each.

    Raises:
        RequestError: no such source.
        DataError: the source has no such split, targets of another task, or a class that the model does not know.
    """
    source = section.source
    if source is None:
        raise RequestError(f"no data: give --data SOURCE. A source is {sources.KINDS}.")
    warnings: list[str] = []
    if task.dense and section.ignore is None and (len(classes) != 2 or section.only is not None):
        section = section.model_copy(update={"ignore": IGNORE})  # masks of 0 and 255 alone are not of two classes here
    sets = sources.read(source, section, warnings)
    if set(sets) == {UNSPLIT}:
        images = sets[UNSPLIT]
    elif split in sets:
        images = sets[split]
    else:
        raise DataError(f"{source} has no {split} split; it has: {', '.join(sets)}. Choose one with --split")
    if not len(images):
        raise DataError(f"{source} has no images in {split}")
    if section.task != "auto":
        images = replace(images, task=task)
    if images.task != task:
        raise DataError(f"{source} has {images.task.about}; this model was trained on {task.about}")
    if section.only in images.classes and images.classes != classes:
        images = one_vs_rest(images, str(section.only), source)
    return align(images, classes, source), warnings


def align(images: ImageSet, classes: tuple[str, ...], source: str) -> ImageSet:
    """The same images with targets that index ``classes``; see `load_aligned`."""
    if images.classes == classes:
        return images
    numbered = all(name.isdigit() for name in images.classes)
    table = np.zeros(len(images.classes), dtype=np.int64)
    for label in np.flatnonzero(images.counts):
        name = images.classes[label]
        # A class of masks that is ignored takes its number out of the count.
        number = (int(label) if images.task.dense else int(name)) if numbered else -1
        if 0 <= number < len(classes):
            table[label] = number
        elif numbered:
            raise DataError(f"{source} has the class {name}; the model knows {len(classes)} classes, counted from 0")
        elif name in classes:
            table[label] = classes.index(name)
        else:
            hint = " To leave unlabeled ground out, train with --set data.ignore=NAME." if name == BACKGROUND else ""
            raise DataError(
                f"{source} has the class {name!r}, which the model does not know; {near(name, classes)}{hint}"
            )
    return replace(images, targets=images.task.relabel(images.targets, table), classes=classes)
