"""Resize an image of any number of channels with 8 or 16 bits, by Pillow."""

from __future__ import annotations

import numpy as np
from PIL import Image


def resampled(
    image: np.ndarray,
    size: tuple[int, int],
    filter: Image.Resampling,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """An image, uint8 or uint16 [H, W, C], in ``size`` (height, width).

    Channels other than gray and RGB are resized one by one; and values of 16 bits as floats, which hold them exactly.

    Args:
        box: the part of it that is taken: left, top, right and bottom in pixels; None: all.
    """
    height, width = size
    if image.dtype == np.uint8 and image.shape[2] in (1, 3):
        pixels = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        out = np.asarray(pixels.resize((width, height), filter, box=box))
        return out[..., None] if out.ndim == 2 else out
    planes = [Image.fromarray(plane.astype(np.float32)) for plane in np.moveaxis(image, 2, 0)]
    values = np.stack([np.asarray(plane.resize((width, height), filter, box=box)) for plane in planes], axis=2)
    return np.rint(values.clip(0, np.iinfo(image.dtype).max)).astype(image.dtype)
