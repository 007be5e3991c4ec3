"""A map laid over its image: the image in gray, the map in color, so that no color is the image's own."""

from __future__ import annotations

import numpy as np

from petriscope.core.masks import border_pixels

# From nothing to most; dark to bright, so that it reads in gray and to color-blind eyes too.
COLORS = np.array([(40, 20, 90), (130, 30, 130), (215, 60, 90), (250, 140, 40), (255, 235, 120)], dtype=np.float64)
LUMINANCE = (0.2126, 0.7152, 0.0722)  # of red, green and blue: ITU-R BT.709
OUTLINE = (0, 235, 255)  # neither gray nor a color of the map
STRENGTH = 0.85  # share of the color where the map is 1


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """uint8 [H, W, C] and float [H, W] in [0, 1] -> uint8 [H, W, 3]. Where the map is 0, the gray image shows through."""
    gray = image[..., 0].astype(np.float64) if image.shape[-1] == 1 else image @ np.array(LUMINANCE)
    heat = np.clip(heat, 0, 1)
    stops = np.linspace(0, 1, len(COLORS))
    color = np.stack([np.interp(heat, stops, COLORS[:, channel]) for channel in range(3)], axis=-1)
    share = (STRENGTH * np.sqrt(heat))[..., None]
    return np.round(gray[..., None] * (1 - share) + color * share).astype(np.uint8)


def outlined(image: np.ndarray, region: np.ndarray, color: tuple[int, int, int] = OUTLINE) -> np.ndarray:
    """An image, uint8 [H, W, 3], with the inner edge of a region, bool [H, W], drawn on it. No line is drawn where the
    region ends at the image's border."""
    out = image.copy()
    out[region & border_pixels(region[None])[0]] = color
    return out


def enlarged(image: np.ndarray, heat: np.ndarray, region: np.ndarray | None = None, side: int = 224) -> np.ndarray:
    """The overlay of an image at about ``side`` pixels: its pixels as squares, the map smooth, the region outlined;
    uint8 [h, w, 3]."""
    from scipy.ndimage import zoom

    factor = max(1, side // max(heat.shape))
    large = image.repeat(factor, axis=0).repeat(factor, axis=1)
    smooth = zoom(heat, factor, order=1, grid_mode=True, mode="nearest") if factor > 1 else heat
    out = overlay(large, smooth)
    return out if region is None else outlined(out, region.repeat(factor, axis=0).repeat(factor, axis=1))
