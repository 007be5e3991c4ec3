"""The images that a caller gives to be predicted: paths, arrays, PIL images, or the bytes of image files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from io import BytesIO
from os import PathLike
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from petriscope.core.channels import MOST
from petriscope.core.errors import DataError, RequestError
from petriscope.core.files import user_path
from petriscope.data.encode import encoded_exactly
from petriscope.data.in_memory import AnyFile, InMemory

TAKEN = (
    "images are given as a path (str or Path) of a file or a folder, a uint8 or uint16 array [H, W], [H, W, C] or [N, H, W, C] "
    "with 1 to 16 channels, a PIL image, the bytes of an image file, or a list of these"
)
OF_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # modes of Pillow that a PNG file keeps
OF_TIFF = ("CMYK", "F", "I")
AS_KEPT = {"I;16B": "I;16", "I;16L": "I;16", "I;16N": "I;16", "La": "LA", "RGBa": "RGBA", "PA": "RGBA"}  # else RGB


def as_files(images: Any) -> list[AnyFile]:
    """Paths as they are given, and the others as image files in memory. Their names are ``image-`` and a number, counted from 0
    over all that is given.

    Raises:
        RequestError: something that cannot be an image; the message says what is taken.
        DataError: a PIL image cannot be read.
    """
    single = isinstance(images, str | PathLike | bytes | bytearray | memoryview | np.ndarray | Image.Image)
    several = isinstance(images, Iterable) and not isinstance(images, dict) and not hasattr(images, "read")
    if not single and not several:
        raise RequestError(f"{_name(images)} is no image; {TAKEN}")
    out: list[AnyFile] = []
    for given in [images] if single else images:
        out += _files(given, len(out))
    return out


def _files(given: Any, number: int) -> Iterator[AnyFile]:
    if isinstance(given, str | PathLike):
        yield user_path(given)
    elif isinstance(given, bytes | bytearray | memoryview):
        yield InMemory(f"image-{number}", bytes(given))
    elif isinstance(given, Image.Image):
        yield InMemory(f"image-{number}", _encoded(given, number))
    elif isinstance(given, np.ndarray):
        for index, pixels in enumerate(_stack(given)):
            if pixels.dtype == np.uint8 and pixels.shape[2] == 4:  # RGBA
                yield InMemory(f"image-{number + index}", _saved(Image.fromarray(pixels), "PNG"))
            else:
                yield InMemory(f"image-{number + index}", encoded_exactly(pixels)[1])
    else:
        raise RequestError(f"{_name(given)} is no image; {TAKEN}")


def _stack(array: np.ndarray) -> np.ndarray:
    """[N, H, W, C]"""
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype in (np.uint8, np.uint16) and array.size:
        if array.ndim == 2:
            return array[None, :, :, None]
        if array.ndim in (3, 4) and array.shape[-1] <= MOST:
            return array[None] if array.ndim == 3 else array
    raise RequestError(f"an array of {array.dtype} {list(array.shape)} is no image and no stack of images; {TAKEN}")


def _encoded(image: Image.Image, number: int) -> bytes:
    try:
        if image.mode in OF_TIFF:
            return _saved(ImageOps.exif_transpose(image), "TIFF")
        return _saved(_as_kept(image), "PNG", exif=image.getexif())
    except Exception as error:  # an image that was opened and not loaded may be damaged
        raise DataError(f"image-{number}, a PIL image, cannot be read: {error}") from error


def _as_kept(image: Image.Image) -> Image.Image:
    """The image in a mode that a PNG file keeps."""
    if image.mode in OF_PNG:
        return image
    mode = AS_KEPT.get(image.mode, "RGB")
    if mode == "I;16":  # Pillow would clip these
        return Image.fromarray(np.asarray(image).astype(np.uint16))
    return image.convert(mode)


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = BytesIO()
    image.save(out, kind, **({"compress_level": 1, **options} if kind == "PNG" else options))
    return out.getvalue()


def _name(value: Any) -> str:
    name = type(value).__name__
    return name if value is None else f"an object of type {name}"
