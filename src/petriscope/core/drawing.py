"""Drawing: class colors, overlays of masks and maps, weights of luma, resizing for display, PNG files.

Pages, indexed PNG files and overlays share one palette.
"""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np

from petriscope.core.channels import Names, colors_of, default_names, is_plain
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
SHOWN = 0.999  # quantile of a channel that is shown as its brightest
# The colors of channels that are no colors themselves, in their order.
TINTS = (
    ("blue", (0.1, 0.3, 1.0)),
    ("green", (0.0, 1.0, 0.0)),
    ("red", (1.0, 0.0, 0.0)),
    ("magenta", (1.0, 0.0, 1.0)),
    ("yellow", (1.0, 1.0, 0.0)),
    ("cyan", (0.0, 1.0, 1.0)),
    ("gray", (1.0, 1.0, 1.0)),
)
LINES = 256  # of an image that are blended at a time
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
    out = np.empty((*image.shape[:2], 3), dtype=np.uint8)
    for top in range(0, len(image), LINES):
        rows = slice(top, top + LINES)
        weight = np.where(mask[rows] == IGNORE, 0.0, share).astype(np.float32)[..., None]
        out[rows] = image[rows].astype(np.float32) * (1 - weight) + paint(mask[rows], count) * weight + 0.5
    return out


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


def shown(images: np.ndarray, channels: Names = ()) -> np.ndarray:
    """Images as people can see them, uint8 [..., H, W, 1 or 3].

    Gray and RGB with 8 bits are returned as they are. Else each channel is stretched from its smallest value to its 99.9th
    percentile, over all of ``images``, so that these can be compared with one another. Where there are red, green and blue, only
    these are shown; other channels are added up, each in a color of `TINTS`.

    Args:
        images: uint8 or uint16 [..., H, W, C].
        channels: names; empty: those of `petriscope.core.channels.default_names`.
    """
    names = channels or default_names(images.shape[-1])
    if not images.size or (is_plain(names) and images.dtype == np.uint8):
        return images if is_plain(names) else np.zeros((*images.shape[:-1], 3), np.uint8)
    values = images.astype(np.float32)
    flat = values.reshape(-1, values.shape[-1])
    low, high = flat.min(0), np.quantile(flat, SHOWN, axis=0)
    values = ((values - low) / np.maximum(high - low, 1)).clip(0, 1)
    if (colors := colors_of(names)) is not None:
        values = values[..., list(colors)]
    elif len(names) > 1:
        tints = np.array([TINTS[place % len(TINTS)][1] for place in range(len(names))], np.float32)
        values = (values @ tints).clip(0, 1)
    return np.rint(values * 255).astype(np.uint8)


def shown_as(channels: Names, bits: int) -> str:
    """What `shown` makes of images, as a sentence; empty where they are shown as they are."""
    if is_plain(channels) and bits == 8:
        return ""
    said = "Each channel is shown stretched from its smallest to its largest values in the images beside it"
    if (colors := colors_of(channels)) is not None:
        rest = [name for place, name in enumerate(channels) if place not in colors]
        return f"{said}; {', '.join(rest)} {'is' if len(rest) == 1 else 'are'} not shown." if rest else f"{said}."
    if len(channels) == 1:
        return f"{said}."
    parts = [f"{name} in {TINTS[place % len(TINTS)][0]}" for place, name in enumerate(channels)]
    return f"{said}, {', '.join(parts)}, added up."


def fit_within(height: int, width: int, longest: int, shortest: int = 1) -> tuple[int, int]:
    """The (height, width) of an image shrunk so that no side is longer than ``longest``. Its proportions are kept, except
    that no side becomes shorter than ``shortest``. Images are never enlarged otherwise."""
    factor = min(1.0, longest / max(height, width, 1))
    return max(shortest, round(height * factor)), max(shortest, round(width * factor))


def resize_images(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize images, uint8 or uint16 [N, H, W, C], to (height, width), bilinear with antialiasing."""
    import torch

    planes = tensor_of(images).permute(0, 3, 1, 2).float()
    out = torch.nn.functional.interpolate(planes, size, mode="bilinear", align_corners=False, antialias=True)
    out = out.round_().clamp_(0, float(np.iinfo(images.dtype).max)).permute(0, 2, 3, 1)
    return out.to(torch.uint8 if images.dtype == np.uint8 else torch.uint16).contiguous().numpy()


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
