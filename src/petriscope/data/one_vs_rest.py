"""One class of masks against all others: what a specialist learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from petriscope.core.errors import RequestError, near
from petriscope.core.masks import IGNORE
from petriscope.data.imageset import ImageSet

REST = "rest"


def one_against_rest(images: ImageSet, name: str, source: str) -> ImageSet:
    """The same images with masks of two classes: 0 is `REST`, 1 the class of that name. What is unlabeled stays so.

    Raises:
        RequestError: the targets are labels, or there is no such class.
    """
    if not images.segments:
        raise RequestError(f"data.only is about masks, and the targets of {source} are labels")
    if name not in images.classes:
        raise RequestError(f"data.only: {source} has no class {name!r}; {near(name, images.classes)}")
    if name == REST:
        raise RequestError(
            f"data.only: the class {REST!r} of {source} has the name of all the others; name it otherwise in data.classes"
        )
    table = np.zeros(256, dtype=np.uint8)
    table[images.classes.index(name)], table[IGNORE] = 1, IGNORE
    return replace(images, targets=table[images.targets], classes=(REST, name))
