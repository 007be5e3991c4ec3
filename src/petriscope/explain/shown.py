"""An image with its explanation, for pages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Shown:
    """An image and its map.

    Args:
        image: uint8 [H, W, C].
        heat: float [H, W] in [0, 1], the map for the class ``explained``; None if there is none.
        id: the name of the image.
        predicted: the predicted class; for a mask, the class with the most pixels.
        confidence: the probability of the predicted class; for a mask, the mean probability of ``explained`` over the
            pixels predicted as it.
        explained: the class that the map is for.
        mask: the predicted class index per pixel, uint8 [H, W], where targets are masks.
        share: the share of the image that is predicted as ``explained``, where targets are masks.
        note: why there is no map.
    """

    image: np.ndarray
    heat: np.ndarray | None
    id: str
    predicted: str
    confidence: float | None
    explained: str
    mask: np.ndarray | None = None
    share: float = 0.0
    note: str | None = None


# For each image file: the map, the predicted mask (for segmentation), and the fields of the row.
Explained = Iterator[tuple[np.ndarray | None, np.ndarray | None, dict[str, Any]]]
