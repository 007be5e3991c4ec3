"""Decode one image file to a uint8 array; `petriscope.data.decode_many` decodes many."""

from __future__ import annotations

import warnings as library_warnings
from contextlib import suppress
from functools import cache as cache_result
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image

from petriscope.core.device import cores
from petriscope.core.errors import DataError
from petriscope.data.contents import Content, peak_of
from petriscope.data.in_memory import AnyFile, Within
from petriscope.data.stored import REMEDY, Stored, describe_tiff, look, read_16_bit

# What Pillow says of metadata that it does not understand is of no use to a user; what it cannot read, it raises.
library_warnings.filterwarnings("ignore", module=r"PIL\.")
MAX_PIXELS = 64_000_000
MAX_BYTES = 1 << 30  # of a file: twice what so many pixels take
GRAYISH = 8  # how far the channels of a gray image that is stored in color may differ, as in JPEG
BRIGHT = 0.01  # share of the pixels of an image that may be brighter than data.bits allows
# Formats that Pillow decodes itself. For others it starts a program (Ghostscript for EPS), or they are no raster images.
# fmt: off
FORMATS = frozenset([
    "AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "PSD", "QOI", "SGI", "SUN", "TGA", "TIFF", "WEBP",
])
# fmt: on
# Suffixes of image files. What a file holds is decided by its content alone. Icons and files of layers, which often lie beside
# images, are left out.
# fmt: off
SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".tif", ".tiff", ".webp", ".gif", ".bmp", ".dib",
    ".avif", ".avifs", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".pcx", ".qoi",
    ".sgi", ".ras", ".tga",
)
# fmt: on
LOOKED_UP = 1 << 20  # values at a time

Filter = Literal["nearest", "box", "bilinear", "bicubic", "lanczos"]
Channels = Literal["auto", "gray", "rgb"]


class Unreadable(Exception):
    """Why one image cannot be used."""


def decode_file(
    path: AnyFile | str,
    size: tuple[int, int] | None = None,
    filter: Filter = "bilinear",
    channels: Channels = "auto",
    bits: int = 16,
) -> np.ndarray:
    """Decode one image: its first page or frame, turned upright by its EXIF tag, with transparent parts on white.

    Args:
        path: a file in one of `FORMATS`, of up to 64 megapixels, also in memory.
        size: (height, width) to resize to, by ``filter``.
        channels: ``auto``: gray for a gray image, else RGB.
        bits: significant bits of a 16-bit image; its values are scaled by 255 / (2**bits - 1).

    Returns:
        uint8 [H, W, 1 or 3], 0..255.

    Raises:
        DataError: the image cannot be read. The message names it and says why.
    """
    return decode_with_content(path, size, filter, channels, bits)[0]


def decode_with_content(
    path: AnyFile | str,
    size: tuple[int, int] | None = None,
    filter: Filter = "bilinear",
    channels: Channels = "auto",
    bits: int = 16,
) -> tuple[np.ndarray, Content]:
    """`decode_file`, and what the file holds beside what was taken from it."""
    try:
        return read_image(Path(path) if isinstance(path, str) else path, size, filter, channels, bits)
    except Unreadable as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from None


def resize(image: np.ndarray, size: tuple[int, int], filter: Filter) -> np.ndarray:
    """Resize an image, uint8 [H, W, C], to ``size`` (height, width)."""
    if image.shape[:2] == size:
        return image
    pixels = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    out = np.asarray(pixels.resize((size[1], size[0]), Image.Resampling[filter.upper()]))
    return out[..., None] if out.ndim == 2 else out


def image_size(path: AnyFile) -> tuple[int, int]:
    """The (height, width) of an image when upright, from its header.

    Raises:
        DataError: the file cannot be read.
    """
    header, reason = probe_file(path)
    if header is None:
        raise DataError(f"{path} cannot be read as an image: {reason}")
    return header[0], header[1]


def scale_16_bit(values: np.ndarray, bits: int) -> np.ndarray:
    """Scale values in 0..2**bits-1 to uint8 in 0..255, rounded to the nearest; larger ones, up to 65535, become 255."""
    table = _scale(bits)
    flat, out = values.reshape(-1), np.empty(values.shape, dtype=np.uint8)
    for start in range(0, flat.size, LOOKED_UP):
        out.reshape(-1)[start : start + LOOKED_UP] = table[flat[start : start + LOOKED_UP]]
    return out


@cache_result
def _scale(bits: int) -> np.ndarray:
    """The value with 8 bits of each with 16, uint8 [65536]."""
    top = 2**bits - 1
    values = np.minimum(np.arange(1 << 16), top)
    return ((values * 255 + top // 2) // top).astype(np.uint8)


def too_bright(values: np.ndarray, bits: int) -> bool:
    """Whether values are brighter than so many bits allow. A few of them, such as hot pixels, are clipped.

    Raises:
        ValueError: there are more than a few.
    """
    count = int(np.count_nonzero(values > 2**bits - 1))
    if count > max(1, BRIGHT * values.size):
        raise ValueError(
            f"its brightest pixel, {values.max()}, is more than data.bits={bits} allows; increase data.bits"
        )
    return count > 0


def workers() -> int:
    """The number of threads for decoding: the processors that this process may use, at most 16."""
    return min(cores(), 16)


def probe_file(path: AnyFile) -> tuple[tuple[int, int, bool] | None, str]:
    """Read the header of an image file.

    Returns:
        ((height, width, gray), ""), the size when upright; or (None, the reason why the header cannot be read).
    """
    try:
        with open_image(path) as image:
            turned = orientation_of(image) >= 5
            if turned and image.format == "TIFF":  # recent versions of Pillow turn these when loading
                image.load()
                turned = orientation_of(image) >= 5
            width, height = reversed(image.size) if turned else image.size
            return (height, width, _is_gray(image)), ""
    except Unreadable as error:
        return None, str(error)
    except Exception as error:
        return None, _reason(error)


def read_image(
    path: AnyFile, size: tuple[int, int] | None, filter: Filter, channels: Channels, bits: int
) -> tuple[np.ndarray, Content]:
    """`decode_with_content`, for callers that name the file themselves.

    Raises:
        Unreadable: the image cannot be read.
    """
    with open_image(path) as image:
        try:
            stored = look(image)
            if stored.refused:
                raise ValueError(stored.refused)
            image.load()
            orientation = orientation_of(image)
            deep = _deep(path, image, stored)
            notes = {"pages": stored.pages} if stored.pages > 1 else {}
            if stored.channels > len(image.getbands()):
                notes["channels"] = stored.channels
            if deep is not None:
                notes |= {"bright": 1} if too_bright(deep[0], bits) else {}
                image = _eight_bit(image.mode, *deep, bits)
            elif stored.bits > 8:
                if bits < 16:
                    raise ValueError(
                        f"only the upper 8 of its {stored.bits} bits are read, so data.bits={bits} does not apply"
                    )
                notes["bits"] = stored.bits
            flat, opacity = _flatten(image, "L" if _is_gray(image) else "RGB")
            if opacity[0] < 255:
                notes["transparent" if opacity[1] else "blank"] = 1
            if orientation in _UPRIGHT:
                flat = flat.transpose(_UPRIGHT[orientation])
            if (
                channels == "gray"
                and flat.mode == "RGB"
                and int(np.ptp(np.asarray(flat), axis=2).max(initial=0)) > GRAYISH
            ):
                notes["color"] = 3
            if channels != "auto":
                flat = flat.convert("L" if channels == "gray" else "RGB")
            array = np.asarray(flat)
        except Exception as error:  # Pillow's decoders raise many kinds on damaged files
            raise Unreadable(_reason(error)) from error
    peak, bits = (peak_of(array), 8) if deep is None else (peak_of(deep[0]), 16)
    content = Content(peak, bits, notes, array.shape[:2])
    array = array[..., None] if array.ndim == 2 else array
    return (resize(array, size, filter) if size else array), content


def _deep(path: AnyFile, image: Image.Image, stored: Stored) -> tuple[np.ndarray, np.ndarray | None] | None:
    """The colors of an image with more than 8 bits per channel, unsigned [H, W] or [H, W, 3 or 4 (CMYK)], and its opacity,
    uint8 [H, W] or None; None for any other image, and where they cannot be had.

    Raises:
        ValueError: a value does not fit into 16 bits.
    """
    opacity = None
    if image.mode.startswith("I"):
        values = np.asarray(image)
        low, high = int(values.min(initial=0)), int(values.max(initial=0))
        if low < 0 or high > 65535:
            raise ValueError(f"its pixels are whole numbers from {low} to {high} ({stored.bits} bits); {REMEDY}")
        values = 65535 - values if stored.inverted else values
    elif stored.bits == 16:
        with open_image(path) as again:
            found = read_16_bit(image, again)
        if found is None:
            return None
        values = found
        if image.mode == "RGBA":
            values, opacity = values[..., :3], (values[..., 3] >> 8).astype(np.uint8)
    else:
        return None
    if (
        key := image.info.get("transparency")
    ) is not None and image.format == "PNG":  # the one color that is transparent
        opacity = np.where((values.reshape(*values.shape[:2], -1) == key).all(2), 0, 255).astype(np.uint8)
    return values, opacity


def _eight_bit(mode: str, colors: np.ndarray, opacity: np.ndarray | None, bits: int) -> Image.Image:
    mode = "L" if colors.ndim == 2 else "CMYK" if mode == "CMYK" else "RGB"
    out = Image.frombytes(mode, (colors.shape[1], colors.shape[0]), scale_16_bit(colors, bits).tobytes())
    if opacity is not None:
        out.putalpha(Image.fromarray(opacity))
    return out


def open_image(path: AnyFile) -> Image.Image:
    """Open an image file in one of `FORMATS`; its content decides which, not its name. Nothing is decoded yet.

    Raises:
        Unreadable: it is no regular file, no such image, or has more than 64 megapixels or a gibibyte.
    """
    try:
        if isinstance(path, Path) and not path.is_file():  # a named pipe would be waited for without end
            raise Unreadable("not a regular file" if path.exists() else "no such file")
        if (size := _bytes_of(path)) > MAX_BYTES:
            raise Unreadable(f"its {size:,} bytes are more than {MAX_BYTES >> 30} GiB")
        image = Image.open(path if isinstance(path, Path) else path.open(), formats=_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Unreadable(f"more than {MAX_PIXELS // 1_000_000} megapixels") from None
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(describe_tiff(path) or _reason(error)) from error
    # Or else Pillow would map some files into memory: it takes the sides of turned TIFF images for one another there, and a
    # file that is cut meanwhile would end the process.
    image.filename = ""
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise Unreadable(f"{image.width} x {image.height} is more than {MAX_PIXELS // 1_000_000} megapixels")
    return image


def _bytes_of(path: AnyFile) -> int:
    if isinstance(path, Path):
        return path.stat().st_size
    return path.size if isinstance(path, Within) else 0


@cache_result
def _formats() -> list[str]:
    Image.init()
    return sorted(FORMATS & set(Image.OPEN))


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if text.startswith("cannot identify image file"):
        return "not an image in a format that can be read, or its header is damaged"
    return text or type(error).__name__


def _is_gray(image: Image.Image) -> bool:
    if image.mode == "P" and image.palette is not None and image.palette.mode == "RGB":
        colors = bytes(image.palette.palette)
        return colors[::3] == colors[1::3] == colors[2::3]
    return image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")


def _flatten(image: Image.Image, mode: Literal["L", "RGB"]) -> tuple[Image.Image, tuple[int, int]]:
    """The image on white, and the opacity of its least and most opaque pixel, 0..255."""
    if not (image.has_transparency_data or image.mode in ("La", "RGBa")):
        return image.convert(mode), (255, 255)
    white = Image.new("RGBA", image.size, "white")
    image = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
    white.alpha_composite(image)
    opacity = np.asarray(image.getchannel("A"))
    return white.convert(mode), (int(opacity.min()), int(opacity.max()))


def orientation_of(image: Image.Image) -> int:
    """The orientation that the EXIF tag of an image gives, 1 (upright) to 8."""
    # For a PNG file without EXIF data, getexif would decode the whole image.
    if "exif" in image.info or image.format == "TIFF":
        with suppress(Exception):
            return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    return 1


_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
