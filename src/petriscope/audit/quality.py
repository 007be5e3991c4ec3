"""Image quality: images that are dark, overexposed, blurred, blank, gray among color images, or have low contrast."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from petriscope.audit.descriptors import as_bytes, check_images
from petriscope.core.channels import Colors, colors_of, default_names
from petriscope.core.drawing import BT601
from petriscope.core.progress import progress
from petriscope.data.imageset import ImageSet

CHUNK_PIXELS = 1 << 18  # measured at once, so that they stay in the CPU cache
LUMA = tuple(round(256 * weight) for weight in BT601)  # whole numbers, for sums in uint16
CLIPPED = 253  # gray levels from here on count as overexposed
NAMES = ("brightness", "contrast", "highlights", "clipped", "sharpness", "saturation")
FLAGS = ("dark", "bright", "low_contrast", "blurred", "blank", "gray_among_color")


@dataclass(frozen=True, eq=False)
class Quality:
    """What was measured for each image, and what is wrong with it.

    Args:
        values: float32 [N] each, computed from the luma on a scale from 0 (black) to 1 (white):
            ``brightness``: its mean;
            ``contrast``: its 99th minus its 1st percentile;
            ``highlights``: its 98th percentile;
            ``clipped``: the share of pixels that are white;
            ``sharpness``: the root mean square of the Laplacian divided by that of the gradient; about 1.3 for sharp images,
            half as much for blurred ones, 2.2 for noise, 0 for constant images;
            ``saturation``: the mean difference between the highest and the lowest channel of a pixel, 0 to 1.
        flags: bool [N] each: ``dark``, ``bright``, ``low_contrast``, ``blurred``, ``blank``, ``gray_among_color``.
    """

    values: dict[str, np.ndarray]
    flags: dict[str, np.ndarray]


def measure_quality(images: ImageSet | np.ndarray, *, quiet: bool = True) -> Quality:
    """Measure every image, and flag those that are clearly worse than the others.

    A set of dark images is not a fault, but one dark image among bright ones is. So all flags except ``blank`` are relative
    to the set. An image must differ from the median by a number of robust standard deviations, and also by an absolute or
    relative margin, because in a very uniform set small differences are many standard deviations.

    Args:
        images: uint8 [N, H, W, C], gray or RGB; a memory-mapped set is read in chunks.
        quiet: show no progress.

    Raises:
        DataError: the images are not uint8 or uint16 [N, H, W, 1 to 16].
    """
    count, height, width, channels = check_images(images)
    colors = colors_of(images.channels if isinstance(images, ImageSet) else default_names(channels))
    values = {name: np.zeros(count, np.float32) for name in NAMES}
    span = np.zeros(count, np.float32)  # difference between the lightest and the darkest pixel
    step = max(1, CHUNK_PIXELS // max(height * width, 1))
    with progress("measuring quality", count) as bar:
        for start in range(0, count, step):
            at = slice(start, min(start + step, count))
            block = images.take(np.arange(at.start, at.stop)) if isinstance(images, ImageSet) else images[at]
            for name, measured in _measure(as_bytes(block), colors).items():
                (span if name == "span" else values[name])[at] = measured
            if not quiet:
                bar.advance(len(block))
    return Quality(values, _flag(values, span, colors is not None))


def _measure(block: np.ndarray, colors: Colors | None) -> dict[str, np.ndarray]:
    """uint8 [B, H, W, C] -> float [B] for each of `NAMES`, and for ``span``. Where there are colors, these alone are measured;
    else the mean over all channels, which have no saturation."""
    if colors is not None:
        block = block if colors == (0, 1, 2) and block.shape[3] == 3 else block[..., list(colors)]
    elif block.shape[3] > 1:
        block = block.mean(3, keepdims=True).round().astype(np.uint8)
    planes = np.ascontiguousarray(block.transpose(3, 0, 1, 2))
    luma = _luma(planes)
    count, pixels = len(luma), luma[0].size
    histogram = np.stack([np.bincount(each, minlength=256) for each in luma.reshape(count, pixels)])
    cumulated = histogram.cumsum(1)

    def percentile(percent: float) -> np.ndarray:
        return (cumulated >= percent / 100 * pixels).argmax(1) / 255

    return {
        "brightness": histogram @ np.arange(256) / (255 * pixels),
        "contrast": percentile(99) - percentile(1),
        "highlights": percentile(98),
        "clipped": histogram[:, CLIPPED:].sum(1) / pixels,
        "sharpness": _sharpness(luma),
        "saturation": (planes.max(0) - planes.min(0)).reshape(count, -1).mean(1) / 255,
        "span": (255 - (histogram[:, ::-1] > 0).argmax(1) - (histogram > 0).argmax(1)) / 255,
    }


def _luma(planes: np.ndarray) -> np.ndarray:
    """uint8 [C, B, H, W] -> uint8 [B, H, W]."""
    if len(planes) == 1:
        return planes[0]
    total = planes[0].astype(np.uint16)
    total *= LUMA[0]
    for plane, weight in zip(planes[1:], LUMA[1:], strict=True):
        total += np.multiply(plane, weight, dtype=np.uint16)
    total >>= 8
    return total.astype(np.uint8)


def _sharpness(luma: np.ndarray) -> np.ndarray:
    """Ratio of second to first derivatives, which blur lowers whatever the content and the contrast of the image."""
    count, height, width = luma.shape
    if min(height, width) < 3:
        return np.zeros(count)
    gray = luma.astype(np.int16)
    down, across = gray[:, 1:] - gray[:, :-1], gray[:, :, 1:] - gray[:, :, :-1]
    laplacian = down[:, 1:, 1:-1] - down[:, :-1, 1:-1]
    laplacian += across[:, 1:-1, 1:]
    laplacian -= across[:, 1:-1, :-1]
    slope = _mean_square(down) + _mean_square(across)
    return np.sqrt(_mean_square(laplacian) / np.where(slope > 0, slope, 1))


def _mean_square(values: np.ndarray) -> np.ndarray:
    flat = values.reshape(len(values), -1).astype(np.float32)
    return np.einsum("np,np->n", flat, flat) / flat.shape[1]


def _flag(values: dict[str, np.ndarray], span: np.ndarray, color: bool) -> dict[str, np.ndarray]:
    if not len(span):
        return {name: np.zeros(0, bool) for name in FLAGS}
    typical = {name: float(np.median(each)) for name, each in values.items()}
    blank = (values["contrast"] < 0.03) & (span < 0.1)  # a small spot has no contrast but a span
    dark = (values["highlights"] < 0.62 * typical["highlights"]) & (_deviation(values["highlights"], 0.03) < -4)
    bright = (values["clipped"] > typical["clipped"] + 0.3) & (_deviation(values["clipped"], 0.03) > 4)
    flat = (values["contrast"] < 0.38 * typical["contrast"]) & (_deviation(values["contrast"], 0.03) < -3)
    logarithm = np.log(np.maximum(values["sharpness"], 1e-3))
    gray = (values["saturation"] < 0.01) & (typical["saturation"] > 0.04)
    return {
        "dark": dark,
        "bright": bright & (values["brightness"] > typical["brightness"]),
        "low_contrast": flat & ~blank,
        "blurred": (_deviation(logarithm, 0.08) < -5) & ~blank,
        "blank": blank,
        "gray_among_color": gray & ~blank if color else np.zeros_like(blank),
    }


def _deviation(values: np.ndarray, least: float) -> np.ndarray:
    """Deviation from the median in robust standard deviations (1.4826 median absolute deviations, at least ``least``)."""
    distance = values - np.median(values)
    return distance / max(1.4826 * float(np.median(np.abs(distance))), least)
