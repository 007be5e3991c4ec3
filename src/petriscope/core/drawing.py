"""Colors of classes, and masks painted with them. One palette for pages, indexed PNG files and overlays."""

from __future__ import annotations

import colorsys

import numpy as np

from petriscope.core.masks import IGNORE

# Okabe and Ito's colors (2008), which people with color-blind vision tell apart; black is left out, it stands for none.
FIRST = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
GOLDEN = 0.618033988749895  # turns of the hue by which further colors stay apart


def class_colors(count: int) -> np.ndarray:
    """One color per class, uint8 [count, 3]; the same class has the same color whatever the count."""
    further = (colorsys.hsv_to_rgb((0.05 + i * GOLDEN) % 1, 0.65, 0.9) for i in range(count - len(FIRST)))
    return np.array([*FIRST, *(tuple(round(255 * c) for c in color) for color in further)][:count], dtype=np.uint8)


def palette(count: int) -> np.ndarray:
    """The palette of an indexed image, uint8 [256, 3]: the classes' colors, and black for unlabeled (255)."""
    out = np.zeros((256, 3), dtype=np.uint8)
    out[: min(count, IGNORE)] = class_colors(min(count, IGNORE))
    return out


def paint(mask: np.ndarray, count: int) -> np.ndarray:
    """A mask uint8 [H, W] in its classes' colors, uint8 [H, W, 3]; unlabeled pixels are black."""
    return palette(count)[mask]


def overlay(image: np.ndarray, mask: np.ndarray, count: int, share: float = 0.45) -> np.ndarray:
    """A mask laid over its image, uint8 [H, W, 3].

    Args:
        image: uint8 [H, W, C], C 1 or 3.
        mask: uint8 [H, W]; where it is unlabeled, the image shows as it is.
        share: of the color, 0 to 1.
    """
    plain = np.broadcast_to(image, (*image.shape[:2], 3)).astype(np.float32)
    weight = np.where(mask == IGNORE, 0.0, share).astype(np.float32)[..., None]
    return (plain * (1 - weight) + paint(mask, count) * weight + 0.5).astype(np.uint8)
