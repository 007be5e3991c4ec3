"""What the pixels of a mask mean, and where its classes meet."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    Array = TypeVar("Array", np.ndarray, Tensor)

BACKGROUND = "background"  # the class of ground that belongs to no other class, where a source has one
IGNORE = 255  # an unlabeled pixel: it is neither trained on nor scored


def border_pixels(masks: Array) -> Array:
    """Which pixels have a neighbor above, below, left or right of another class.

    Args:
        masks: int or bool [B, H, W]. An unlabeled pixel has no class, so there is no border where a class ends at one.

    Returns:
        bool [B, H, W].
    """
    labeled = masks != IGNORE
    out = labeled & ~labeled
    above, below, left, right = np.s_[:, :-1], np.s_[:, 1:], np.s_[:, :, :-1], np.s_[:, :, 1:]
    for first, second in ((above, below), (left, right)):
        differ = (masks[first] != masks[second]) & labeled[first] & labeled[second]
        out[first] |= differ
        out[second] |= differ
    return out
