"""Objects in masks: connected parts of one class, how many there are and how large."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache as cache_result

import numpy as np

from petriscope.core.masks import BACKGROUND
from petriscope.core.progress import say

TOUCHING = np.ones((3, 3), dtype=np.uint8)  # pixels that touch at a corner belong together


class ObjectCounter:
    """Counts the objects of each class but the background.

    Args:
        classes: K names.
        quiet: do not say if objects cannot be counted.
    """

    def __init__(self, classes: Sequence[str], quiet: bool = False) -> None:
        self.quiet = quiet
        self.counted = [(index, name) for index, name in enumerate(classes) if name != BACKGROUND]

    @property
    def columns(self) -> list[str]:
        """``objects_<class>`` and ``area_<class>``."""
        return [f"{kind}_{name}" for kind in ("objects", "area") for _, name in self.counted]

    def count(self, mask: np.ndarray) -> dict[str, int | float | None]:
        """How many objects of each class there are, and the median of their areas in pixels; None if there is none.

        Args:
            mask: class indices, uint8 [H, W].

        All are None where scipy is not installed, as it may not be beside a package. That is said once.
        """
        if not _has_scipy():
            if not self.quiet:
                say("note: objects are not counted, because scipy is not installed; their columns stay empty")
                self.quiet = True
            return dict.fromkeys(self.columns)
        from scipy.ndimage import find_objects, label

        places = find_objects(mask.astype(np.int32) + 1)
        out: dict[str, int | float | None] = dict.fromkeys(self.columns)
        for index, name in self.counted:
            place = places[index] if index < len(places) else None
            areas = np.empty(0, dtype=np.int64)
            if place is not None:
                parts, _ = label(mask[place] == index, TOUCHING)
                areas = np.bincount(parts.reshape(-1))[1:].astype(np.int64)
            out[f"objects_{name}"] = len(areas)
            out[f"area_{name}"] = float(np.median(areas)) if len(areas) else None
        return out


@cache_result
def _has_scipy() -> bool:
    try:
        import scipy.ndimage  # noqa: F401
    except ImportError:
        return False
    return True
