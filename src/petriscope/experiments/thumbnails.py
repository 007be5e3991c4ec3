"""Images as a run keeps them for its report: of 96 pixels a side at most."""

from __future__ import annotations

import numpy as np
import torch

LARGEST = 96  # pixels a side


def shrink_images(images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, C], sides of 96 pixels at most."""
    height, width = sides(images.shape[1:])[:2]
    if (height, width) == images.shape[1:3] or not len(images):
        return np.ascontiguousarray(images[:, :height, :width])
    channels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
    resized = torch.nn.functional.interpolate(channels, (height, width), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def shrink_masks(masks: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W], of the sides that `shrink_images` gives: the pixels nearest."""
    height, width = sides((*masks.shape[1:], 1))[:2]
    rows, columns = (
        (np.arange(new) * 2 + 1) * old // (2 * new) for new, old in zip((height, width), masks.shape[1:], strict=True)
    )
    return masks[:, rows[:, None], columns]


def sides(shape: tuple[int, ...]) -> tuple[int, int, int]:
    height, width, channels = shape
    factor = min(1.0, LARGEST / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor)), channels
