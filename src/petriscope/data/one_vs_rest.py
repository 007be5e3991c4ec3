"""One class against all others: what a specialist is trained on."""

from __future__ import annotations

from dataclasses import replace

from petriscope.core.errors import RequestError, near
from petriscope.data.imageset import ImageSet

REST = "rest"


def one_vs_rest(images: ImageSet, name: str, source: str) -> ImageSet:
    """The same images with targets of two classes: 0 is `REST`, 1 the class of that name.

    Raises:
        RequestError: the task has no such targets, or there is no such class.
    """
    if name not in images.classes:
        raise RequestError(f"data.only: {source} has no class {name!r}; {near(name, images.classes)}")
    if name == REST:
        raise RequestError(
            f"data.only: {source} has a class called {REST!r}, the name that all other classes together get; "
            "give it another name in data.classes"
        )
    targets = images.task.one_vs_rest(images.targets, images.classes.index(name))
    return replace(images, targets=targets, classes=(REST, name), named=True)
