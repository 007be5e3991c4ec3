"""Bring the objects of images to another size: scale images about their centers, by factors or by micrometers per pixel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from petriscope.core.errors import DataError, RequestError
from petriscope.core.scale import LEAST, MOST, Scale, in_words, micrometers
from petriscope.data.background import background_colors
from petriscope.data.resample import resampled

if TYPE_CHECKING:
    from petriscope.data.imageset import ImageSet

BLOCK = 1 << 22  # values whose background is looked for at a time

Field = tuple[float, float]  # field of view: height and width of an image in micrometers


def scale_factors(sizes: np.ndarray, scale: Scale, field: Field | None) -> np.ndarray:
    """How many times images are enlarged in height and width, float64 [N, 2].

    Args:
        sizes: height and width in pixels of each image in its file, int [N, 2].
        field: what images are brought to, where the scale is in micrometers per pixel.

    Raises:
        RequestError: the scale is in micrometers, and there is no field.
        DataError: a factor is beyond `LEAST` or `MOST`.
    """
    um = micrometers(scale)
    if um is None:
        return np.full((len(sizes), 2), float(scale))
    if field is None:
        raise RequestError(
            f"{in_words(scale)} needs a field of view to bring images to, which is not known: give a factor, or a run that was "
            "trained with data.scale in micrometers per pixel, or with data.field"
        )
    factors = sizes * um / np.array(field)
    if len(wrong := np.flatnonzero(((factors < LEAST) | (factors > MOST)).any(1))):
        height, width = (sizes[wrong[0]] * um).tolist()
        raise DataError(
            f"with {in_words(scale)}, {_images(len(wrong))} {_are(len(wrong))} not of the size of the field of view, "
            f"{field_text(field)}: the first is {field_text((height, width))}. Factors go from {LEAST:g} to {MOST:g}"
        )
    return factors


def common_field(sets: Iterable[tuple[ImageSet, Scale | None]]) -> Field | None:
    """The field of view of most images, of those with a scale in micrometers per pixel; None if there are none."""
    fields: dict[Field, int] = {}
    for images, scale in sets:
        if scale is not None and (um := micrometers(scale)) is not None:
            sizes, counts = np.unique(sizes_of(images), axis=0, return_counts=True)
            for (height, width), count in zip(sizes.tolist(), counts.tolist(), strict=True):
                field = (height * um, width * um)
                fields[field] = fields.get(field, 0) + count
    return max(fields, key=lambda each: (fields[each], each), default=None)


def sizes_of(images: ImageSet) -> np.ndarray:
    """Height and width in pixels of each image in its file, int [N, 2].

    Raises:
        RequestError: they are unknown, as of images with masks.
    """
    if images.sizes is None:
        raise RequestError("images of this source cannot be scaled by micrometers per pixel; give a factor")
    return images.sizes


def set_factors(images: ImageSet, scale: Scale | None, field: Field | None) -> np.ndarray:
    """`scale_factors` for an image set; ones without a scale.

    Raises:
        RequestError: the images have masks, which are not scaled; or as there.
    """
    if scale is None or scale == 1:
        return np.ones((len(images), 2))
    if images.task.dense:
        raise RequestError("data.scale and --scale are for images with labels; masks are not scaled")
    known = micrometers(scale) is not None
    return scale_factors(sizes_of(images) if known else np.ones((len(images), 2)), scale, field)


def describe_factors(factors: np.ndarray, scale: Scale, field: Field | None) -> str:
    """What micrometers per pixel make of images whose files differ in size, as a sentence without its end; empty where all are
    treated alike.

    Args:
        factors: see `scale_factors`.
    """
    if field is None or micrometers(scale) is None or not len(factors) or (factors == factors[0]).all():
        return ""
    area = factors.prod(1)
    larger, smaller = int((area > 1).sum()), int((area < 1).sum())
    return (
        f"with {in_words(scale)}, the fields of view differ; all are brought to {field_text(field)} (height x width): "
        f"{_images(larger)} {_are(larger)} cropped and enlarged, {smaller:,} {_are(smaller)} reduced and surrounded by the color "
        "of the background"
    )


def field_text(field: Field) -> str:
    return f"{field[0]:.4g} x {field[1]:.4g} um"


def rescale(images: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Scale images about their centers: uint8 or uint16 [N, H, W, C] -> the same shape and type.

    Where an image is enlarged, its middle is left; where it is reduced, it is surrounded by the color of its background. Pixels
    are interpolated with Keys' cubic kernel (1981, "Cubic convolution interpolation for digital image processing", IEEE
    Transactions on Acoustics, Speech, and Signal Processing 29:1153), which is stretched where the image is reduced, so that
    fine detail does not alias. The result for an image depends on nothing but the image and its factors.

    Args:
        factors: of height and width, float64 [N, 2].
    """
    out = np.array(images)
    rows, step = np.flatnonzero((factors != 1).any(1)), max(1, BLOCK // max(images[:1].size, 1))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        for row, color in zip(block.tolist(), background_colors(out[block]), strict=True):
            out[row] = _scaled(out[row], factors[row], color)
    return out


def _scaled(image: np.ndarray, factors: np.ndarray, color: np.ndarray) -> np.ndarray:
    """One image, uint8 or uint16 [H, W, C], surrounded by a color, [C]."""
    height, width, channels = image.shape
    wanted = np.array([height, width]) / factors  # what is left of the image, or the image with its surroundings
    top, left = np.ceil(((wanted - (height, width)) / 2).clip(0)).astype(int).tolist()
    canvas = np.empty((height + 2 * top, width + 2 * left, channels), image.dtype)
    canvas[:] = color
    canvas[top : top + height, left : left + width] = image
    (y, x), (below, right) = (np.array(canvas.shape[:2]) - wanted) / 2, (np.array(canvas.shape[:2]) + wanted) / 2
    box = (x, y, right, below)
    return resampled(canvas, (height, width), Image.Resampling.BICUBIC, box).reshape(image.shape)


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
