"""Drawing: class colors, overlays of masks and maps, weights of luma, resizing for display, PNG files.

Pages, indexed PNG files and overlays share one palette.
"""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np

from petriscope.core.device import tensor_of
from petriscope.core.files import atomic
from petriscope.core.masks import IGNORE, border_pixels

# Weights of red, green and blue. BT.601 gives the luma of JPEG and of most image libraries, BT.709 that of sRGB displays.
BT601 = (0.299, 0.587, 0.114)
BT709 = (0.2126, 0.7152, 0.0722)

# Okabe and Ito's colors (2008) are distinct for people with color-blindness. Their black is left out: it marks unlabeled pixels.
FIRST = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
GOLDEN = 0.618033988749895  # steps of the hue, in turns, that keep further colors apart

# The colors of a map from 0 to 1; their lightness increases, so that they can be ordered in gray and with color-blindness.
HEAT = np.array([(40, 20, 90), (130, 30, 130), (215, 60, 90), (250, 140, 40), (255, 235, 120)], dtype=np.float64)
HEAT_SHARE = 0.85  # share of the color where the map is 1
OUTLINE = (0, 235, 255)  # neither gray nor a color of the map


def class_colors(count: int) -> np.ndarray:
    """One color per class, uint8 [count, 3]. The color of a class does not depend on ``count``."""
    further = (colorsys.hsv_to_rgb((0.05 + i * GOLDEN) % 1, 0.65, 0.9) for i in range(count - len(FIRST)))
    return np.array([*FIRST, *(tuple(round(255 * c) for c in color) for color in further)][:count], dtype=np.uint8)


def palette(count: int) -> np.ndarray:
    """The palette of an indexed image, uint8 [256, 3]: the colors of the classes, and black for unlabeled pixels (255)."""
    out = np.zeros((256, 3), dtype=np.uint8)
    out[: min(count, IGNORE)] = class_colors(min(count, IGNORE))
    return out


def paint(mask: np.ndarray, count: int) -> np.ndarray:
    """A mask, uint8 [H, W], in the colors of its classes, uint8 [H, W, 3]. Unlabeled pixels are black."""
    return palette(count)[mask]


def overlay(image: np.ndarray, mask: np.ndarray, count: int, share: float = 0.45) -> np.ndarray:
    """A mask blended with its image, uint8 [H, W, 3].

    Args:
        image: uint8 [H, W, C], C 1 or 3.
        mask: uint8 [H, W]; unlabeled pixels show the image unchanged.
        count: the number of classes.
        share: of the color, 0 to 1.
    """
    plain = np.broadcast_to(image, (*image.shape[:2], 3)).astype(np.float32)
    weight = np.where(mask == IGNORE, 0.0, share).astype(np.float32)[..., None]
    return (plain * (1 - weight) + paint(mask, count) * weight + 0.5).astype(np.uint8)


def heat_overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A map in color, blended with its image in gray, uint8 [H, W, 3].

    Args:
        image: uint8 [H, W, C], C 1 or 3.
        heat: float [H, W], 0 to 1; where it is 0, the gray image shows unchanged.
    """
    gray = image[..., 0].astype(np.float64) if image.shape[-1] == 1 else image @ np.array(BT709)
    heat = np.clip(heat, 0, 1)
    stops = np.linspace(0, 1, len(HEAT))
    color = np.stack([np.interp(heat, stops, HEAT[:, channel]) for channel in range(3)], axis=-1)
    share = (HEAT_SHARE * np.sqrt(heat))[..., None]
    return np.round(gray[..., None] * (1 - share) + color * share).astype(np.uint8)


def outlined(image: np.ndarray, region: np.ndarray, color: tuple[int, int, int] = OUTLINE) -> np.ndarray:
    """An image, uint8 [H, W, 3], with the inner edge of a region, bool [H, W], drawn on it. No line is drawn where the
    region ends at the image's border."""
    out = image.copy()
    out[region & border_pixels(region[None])[0]] = color
    return out


def enlarged_overlay(
    image: np.ndarray, heat: np.ndarray, region: np.ndarray | None = None, side: int = 224
) -> np.ndarray:
    """`heat_overlay` enlarged by a whole factor to at most ``side`` pixels, uint8 [h, w, 3]. Pixels of the image become
    squares, the map is interpolated, and the region, bool [H, W], is outlined."""
    from scipy.ndimage import zoom

    factor = max(1, side // max(heat.shape))
    large = image.repeat(factor, axis=0).repeat(factor, axis=1)
    smooth = zoom(heat, factor, order=1, grid_mode=True, mode="nearest") if factor > 1 else heat
    out = heat_overlay(large, smooth)
    return out if region is None else outlined(out, region.repeat(factor, axis=0).repeat(factor, axis=1))


def fit_within(height: int, width: int, longest: int, shortest: int = 1) -> tuple[int, int]:
    """The (height, width) of an image shrunk so that no side is longer than ``longest``. Its proportions are kept, except
    that no side becomes shorter than ``shortest``. Images are never enlarged otherwise."""
    factor = min(1.0, longest / max(height, width, 1))
    return max(shortest, round(height * factor)), max(shortest, round(width * factor))


def resize_images(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize images, uint8 [N, H, W, C], to (height, width), bilinear with antialiasing."""
    import torch

    planes = tensor_of(images).permute(0, 3, 1, 2).float()
    out = torch.nn.functional.interpolate(planes, size, mode="bilinear", align_corners=False, antialias=True)
    return out.round_().clamp_(0, 255).permute(0, 2, 3, 1).byte().contiguous().numpy()


def write_png(path: Path, pixels: np.ndarray, colors: np.ndarray | None = None) -> None:
    """Write a PNG file atomically.

    Args:
        pixels: uint8 [H, W] or [H, W, 3].
        colors: a `palette`, which makes the file of pixels [H, W] an indexed image.

    Raises:
        PetriscopeError: the disk is full or read-only.
    """
    from PIL import Image

    image = Image.fromarray(pixels)
    if colors is not None:
        image.putpalette(colors.tobytes())
    with atomic(path) as temporary:
        image.save(temporary, format="PNG")
