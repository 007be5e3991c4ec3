"""Images from elsewhere for a model that has its classes already: to be evaluated or adapted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from petriscope.core.channels import RGB
from petriscope.core.errors import DataError, RequestError, listed, near
from petriscope.core.masks import BACKGROUND, IGNORE
from petriscope.core.names import place_of
from petriscope.core.recipe import DataSection
from petriscope.data import sources
from petriscope.data.decode import GRAYISH
from petriscope.data.imageset import ImageSet
from petriscope.data.one_vs_rest import one_vs_rest
from petriscope.data.sources import UNSPLIT
from petriscope.data.sources.mask_values import BINARY_NAMES
from petriscope.tasks import Task

TINT = 0.01  # difference of the means of channels, below which a model learned from gray images
LOOKED_AT = 100  # images, at most, to tell whether all are gray


def load_aligned(section: DataSection, split: str, classes: tuple[str, ...], task: Task) -> tuple[ImageSet, list[str]]:
    """One split of a source, with targets that index the classes of a model.

    Args:
        section: the source, and the size and channels that the model takes.
        split: train, val or test; a source without splits is taken whole.
        classes: the model's. The source's classes are found among them by name, or by number if the source has no names.
            The source need not have all of them.
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
    if task.dense and section.ignore is None and section.mask_values is None and not _of_two(section, classes):
        section = section.model_copy(update={"ignore": IGNORE})  # masks of 0 and 255 alone are not of two classes here
    asked = section.task
    if not task.exclusive:  # labels that a table lists as text are read as several where that is asked for
        section = section.model_copy(update={"task": task.name})
    sets = sources.read(source, section, warnings)
    if set(sets) == {UNSPLIT}:
        images = sets[UNSPLIT]
    elif split in sets:
        images = sets[split]
    else:
        raise DataError(f"{source} has no {split} split; it has: {', '.join(sets)}. Choose one with --split")
    if not len(images):
        raise DataError(f"{source} has no images in {split}")
    if asked != "auto":
        images = replace(images, task=task)
    if images.task != task:
        raise DataError(f"{source} has {images.task.about}; this model was trained on {task.about}")
    if section.only in images.classes and images.classes != classes:
        images = one_vs_rest(images, str(section.only), source)
    return align(images, classes, source, warnings), warnings


def _of_two(section: DataSection, classes: tuple[str, ...]) -> bool:
    """Whether the masks that a model learned from have two classes."""
    if section.only is None:
        return len(classes) == 2
    return section.only in BINARY_NAMES if section.classes is None else len(section.classes) == 2


def align(images: ImageSet, classes: tuple[str, ...], source: str, warnings: list[str]) -> ImageSet:
    """The same images with targets that index ``classes``; see `load_aligned`. Sentences for the user are added to
    ``warnings``."""
    if images.classes == classes:
        return images
    place = _by_name if images.named else _by_number
    table = np.zeros(len(images.classes), dtype=np.int64)
    for label in np.flatnonzero(images.counts).tolist():
        table[label] = place(images, label, classes, source)
    unlike = [f"{label} as {classes[table[label]]}" for label in np.flatnonzero(images.counts) if not images.named]
    if unlike and classes != _numbers(len(classes)):
        others = all(name.isascii() and name.isdigit() for name in classes)
        warnings.append(
            f"{source} has numbers for classes, which count from 0 and were read so: {listed(unlike)}"
            + ("; the model's classes are called by other numbers" if others else "")
        )
    targets = images.task.relabel(images.targets, table)
    if not images.task.exclusive:
        targets = np.pad(targets, ((0, 0), (0, len(classes) - targets.shape[1])))
        known = {place_of(name, classes) if images.named else int(name) for name in images.classes}
        if lacking := [name for k, name in enumerate(classes) if k not in known]:
            warnings.append(
                f"{source} does not have {listed(lacking)} among its labels, so all of its images count as without; where nobody "
                "looked for these, leave their metrics aside"
            )
    return replace(images, targets=targets, classes=classes, named=True)


def lacks_color(images: ImageSet, mean: Sequence[float], source: str) -> list[str]:
    """What is said where a model learned from images in color and all of these are gray; nothing otherwise.

    Args:
        mean: of each channel of the images that the model learned from, 0 to 1.
    """
    if images.channels != RGB or len(mean) != len(RGB) or max(mean) - min(mean) < TINT:
        return []
    most = GRAYISH * (2**images.bits - 1) / 255
    for index in np.unique(np.linspace(0, len(images) - 1, LOOKED_AT).astype(int)).tolist():
        if np.ptp(images.window(index).astype(np.int32), axis=2).max(initial=0) > most:  # most often that of the first
            return []
    return [f"the images of {source} are gray, and the model learned from images in color; metrics are of gray images"]


def _by_name(images: ImageSet, label: int, classes: tuple[str, ...], source: str) -> int:
    name = images.classes[label]
    if (place := place_of(name, classes)) is not None:
        return place
    hint = " To leave unlabeled ground out, train with --set data.ignore=NAME." if name == BACKGROUND else ""
    raise DataError(f"{source} has the class {name!r}, which the model does not know; {near(name, classes)}{hint}")


def _by_number(images: ImageSet, label: int, classes: tuple[str, ...], source: str) -> int:
    # A class of masks that is ignored takes its number out of the count.
    number = label if images.task.dense else int(images.classes[label])
    if number >= len(classes):
        raise DataError(f"{source} has the class {number}; the model knows {len(classes)} classes, counted from 0")
    return number


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))
