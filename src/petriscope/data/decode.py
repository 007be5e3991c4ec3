"""Decode one image file to an array of uint8 or uint16; `petriscope.data.decode_many` decodes many."""

from __future__ import annotations

import math
import warnings as library_warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache as cache_result
from io import SEEK_END
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

from petriscope.core.channels import GRAY, MOST, Names, default_names, is_plain
from petriscope.core.device import cores
from petriscope.core.errors import DataError
from petriscope.data.contents import Content, peak_of
from petriscope.data.in_memory import AnyFile, InMemory, Page, Within
from petriscope.data.levels import scale_16_bit, to_levels, too_bright
from petriscope.data.picked import choose_channels
from petriscope.data.plain_png import SIGNATURE, read_plain
from petriscope.data.planes import (
    TIFF_READER,
    MissingReader,
    Pages,
    Projection,
    combine,
    kind_of,
    names_in,
)
from petriscope.data.resample import resampled
from petriscope.data.stacks import open_stack
from petriscope.data.stored import DESCRIPTION, REMEDY, Stored, check_description, describe_tiff, look, read_16_bit

# What Pillow says of metadata that it does not understand is of no use to a user; what it cannot read, it raises.
library_warnings.filterwarnings("ignore", module=r"PIL\.")
MAX_PIXELS = 64_000_000
MAX_BYTES = 1 << 30  # of a file: twice what so many pixels take
GRAYISH = 8  # how far the channels of a gray image that is stored in color may differ, as in JPEG
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
    ".sgi", ".ras", ".tga", ".dcm", ".dicom", ".czi", ".nd2", ".lif",
)
# fmt: on
ARRAY = ".npy"  # of a file with the array of one image; in folders, beside files of other suffixes it is left out, see `walk`

MAX_HEADER = 10_000  # bytes of the header of an npy file
NPY = b"\x93NUMPY"  # how a file with one array of numpy begins
NUMBERS = "iuf"  # of images, in numpy's letters: signed, unsigned and floating-point

# "draft": JPEG files that are much larger than what is wanted are decoded at 1/2, 1/4 or 1/8 of their size, by libjpeg; then, and
# for all other files, as "bilinear".
Filter = Literal["nearest", "box", "bilinear", "bicubic", "lanczos", "draft"]
DRAFT_GAP = 2  # times that what libjpeg gives is larger than what is wanted, at least
Channels = Literal["auto", "gray", "rgb"] | Names


@dataclass(frozen=True)
class Form:
    """What the pixels of an image file become.

    Args:
        filter: by which they are resized.
        channels: ``auto``: gray for a gray image, else RGB; or the names of all channels, as many as the file has.
        bits: significant bits of a 16-bit image.
        depth: 8 for uint8, 16 for uint16.
        range: the stored values that become black and white; None: the smallest and largest of their type, of ``bits``.
        pages: what the pages of a file are, see `petriscope.data.planes.combine`.
        projection: of slices, see there.
    """

    filter: Filter = "bilinear"
    channels: Channels = "auto"
    bits: int = 16
    depth: int = 8
    range: tuple[float, float] | None = None
    pages: Pages = "auto"
    projection: Projection | None = None

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8 if self.depth == 8 else np.uint16)

    @property
    def count(self) -> int:
        """The number of channels, where it is known beforehand."""
        return len(self.channels) if isinstance(self.channels, tuple) else 1 if self.channels == "gray" else 3


class Header(NamedTuple):
    """What the header of an image file says.

    Args:
        height, width: when upright.
        gray: whether it has one channel.
        names: of its channels, if it is not gray or RGB.
        turned: whether its EXIF tag says that it is to be turned or mirrored.
    """

    height: int
    width: int
    gray: bool
    names: Names = ()
    turned: bool = False


class Unreadable(Exception):
    """Why one image cannot be used."""


def decode_file(
    path: AnyFile | str,
    size: tuple[int, int] | None = None,
    filter: Filter = "bilinear",
    channels: Channels = "auto",
    bits: int = 16,
    depth: int = 8,
) -> np.ndarray:
    """Decode one image file: its first page or frame, turned upright by its EXIF tag, with transparent parts on white; or an npy
    file, with the array of one image.

    Args:
        path: a file in one of `FORMATS`, of up to 64 megapixels, or an npy file, also in memory.
        size: (height, width) to resize to, by ``filter``.
        channels, bits, depth: see `Form`.

    Returns:
        uint8 or uint16 [H, W, C].

    Raises:
        DataError: the image cannot be read. The message names it and says why.
    """
    return decode_with_content(path, size, filter, channels, bits, depth)[0]


def decode_with_content(
    path: AnyFile | str,
    size: tuple[int, int] | None = None,
    filter: Filter = "bilinear",
    channels: Channels = "auto",
    bits: int = 16,
    depth: int = 8,
) -> tuple[np.ndarray, Content]:
    """`decode_file`, and what the file holds beside what was taken from it."""
    return decode_as(path, size, Form(filter, channels, bits, depth))


def decode_as(path: AnyFile | str, size: tuple[int, int] | None, form: Form) -> tuple[np.ndarray, Content]:
    """`decode_with_content`, in a form."""
    try:
        return read_image(Path(path) if isinstance(path, str) else path, size, form)
    except Unreadable as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from None


def resize(image: np.ndarray, size: tuple[int, int], filter: Filter) -> np.ndarray:
    """Resize an image, uint8 or uint16 [H, W, C], to ``size`` (height, width)."""
    return image if image.shape[:2] == size else resampled(image, size, _resampling(filter))


def _resampling(filter: Filter) -> Image.Resampling:
    return Image.Resampling["BILINEAR" if filter == "draft" else filter.upper()]


def image_size(path: AnyFile) -> tuple[int, int]:
    """The (height, width) of an image when upright, from its header.

    Raises:
        DataError: the file cannot be read.
    """
    header, reason = probe_file(path)
    if header is None:
        raise DataError(f"{path} cannot be read as an image: {reason}")
    return header[0], header[1]


def workers() -> int:
    """The number of threads for decoding: the processors that this process may use, at most 16."""
    return min(cores(), 16)


def probe_file(path: AnyFile, form: Form = Form()) -> tuple[Header | None, str]:
    """Read the header of an image file, of which ``form`` may ask for more than the first page.

    Returns:
        (the header, ""); or (None, the reason why it cannot be read).
    """
    try:
        opened = _open(path, form)
        if opened == "npy":
            with open_npy(path) as (_, shape, _):
                _check_order(shape, form)
                height, width, *more = shape
                names = default_names(*more) if more else GRAY
            return Header(height, width, names == GRAY, () if is_plain(names) else names), ""
        if isinstance(opened, str):
            with open_stack(path, opened) as stack:
                names = names_in(stack, form.pages)
                sides = (stack.width, stack.height) if stack.turn >= 5 else (stack.height, stack.width)
                return Header(*sides, names == GRAY, () if is_plain(names) else names), ""
        with opened as image:
            tag = orientation_of(image)
            turned = tag >= 5
            if turned and image.format == "TIFF":  # recent versions of Pillow turn these when loading
                image.load()
                turned = orientation_of(image) >= 5
            width, height = reversed(image.size) if turned else image.size
            return Header(height, width, _is_gray(image), turned=tag > 1), ""
    except Unreadable as error:
        return None, str(error)
    except Exception as error:
        return None, _reason(error)


def pages_of(path: AnyFile) -> list[AnyFile]:
    """The pages, frames or positions of a file, each as an image; the file itself if it has one, or cannot be opened."""
    if isinstance(path, Page):
        return [path]
    with suppress(Exception):  # said when it is decoded
        kind = _open(path, Form(pages="images"))
        if not isinstance(kind, str):
            kind.close()
        elif kind != "npy":
            with open_stack(path, kind) as stack:
                return [Page(path, number) for number in range(stack.pages)]
    return [path]


def read_image(path: AnyFile, size: tuple[int, int] | None, form: Form) -> tuple[np.ndarray, Content]:
    """`decode_with_content`, for callers that name the file themselves.

    Raises:
        Unreadable: the image cannot be read.
    """
    mode = _wanted_mode(form)
    if mode is not None and (plain := read_plain(path, mode, MAX_PIXELS)) is not None:
        array = _levels(plain, mode)
        return (resize(array, size, form.filter) if size else array), Content(peak_of(array), 8, size=array.shape[:2])
    opened = _open(path, form)
    if isinstance(opened, str):
        try:
            if opened == "npy":
                values = read_npy(path)
                _check_order(values.shape, form)
                array, content = _formed(values, form, {})
            else:
                array, content = _read_planes(path, opened, form)
        except Exception as error:  # as many kinds as there are libraries
            raise Unreadable(_reason(error)) from error
        return (resize(array, size, form.filter) if size else array), content
    channels, bits = form.channels, form.bits
    with opened as image:
        try:
            if (made := _plain(image, size, form)) is not None:
                content = Content(peak_of(made), 8, size=made.shape[:2])
                return (resize(made, size, form.filter) if size else made), content
            stored = look(image)
            if stored.refused:
                raise ValueError(stored.refused)
            whole = _draft(image, size) if form.filter == "draft" and size is not None else None
            image.load()
            orientation = orientation_of(image)
            deep = _deep(path, image, stored)
            notes = {"pages": stored.pages} if stored.pages > 1 else {}
            four = isinstance(channels, tuple) and len(channels) == 4 and image.mode in ("RGBA", "RGBX")
            if stored.channels > len(image.getbands()):
                notes["channels"] = stored.channels
            if not four and (isinstance(channels, tuple) or form.depth > 8 or form.range is not None):
                values = _values(image, deep, stored, notes)
                array, content = _formed(_turned(values, orientation), form, notes, whole)
                return (resize(array, size, form.filter) if size else array), content
            if four:
                values = np.asarray(image)
                if stored.bits == 16:
                    with open_image(path) as again:
                        found = read_16_bit(image, again)
                    if found is None:
                        raise ValueError("the 16 bits of its four channels cannot be had; save it without compression")
                    values = found
                array, content = _formed(_turned(values, orientation), form, notes, whole)
                return (resize(array, size, form.filter) if size else array), content
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
            wanted = {"gray": "L", "rgb": "RGB"}.get(str(channels), flat.mode)
            flat = flat if flat.mode == wanted else flat.convert(wanted)
            array = np.asarray(flat)
        except Exception as error:  # Pillow's decoders raise many kinds on damaged files
            raise Unreadable(_reason(error)) from error
    peak, bits = (peak_of(array), 8) if deep is None else (peak_of(deep[0]), 16)
    content = Content(peak, bits, notes, whole or array.shape[:2])
    array = array[..., None] if array.ndim == 2 else array
    return (resize(array, size, form.filter) if size else array), content


def _plain(image: Image.Image, size: tuple[int, int] | None, form: Form) -> np.ndarray | None:
    """The pixels of a JPEG or PNG file of which nothing is lost and nothing has to be changed, uint8 [H, W, C]; None for any
    other image. Most files are of this kind, and checking a small file for everything else takes as long as decoding it."""
    wanted, info = _wanted_mode(form), image.info
    if wanted is None or image.mode not in ("L", "RGB") or wanted not in ("", image.mode, "RGB") or "exif" in info:
        return None
    if image.format == "JPEG":
        if form.filter == "draft" and size is not None:
            return None
    elif (
        image.format != "PNG"
        or "transparency" in info
        or getattr(image, "n_frames", 1) > 1
        or _raw_of(image) != image.mode
    ):
        return None
    image.load()
    if "exif" in info or "transparency" in info:  # of a PNG file, which may have it behind its pixels
        return None
    return _levels(image, wanted)


def _wanted_mode(form: Form) -> str | None:
    """The mode of Pillow that gray or RGB of 8 bits is read in; empty: that of the file; None: other pixels are wanted."""
    if form.depth > 8 or form.range is not None or not isinstance(form.channels, str):
        return None
    return {"gray": "L", "rgb": "RGB"}.get(form.channels, "")


def _levels(image: Image.Image, wanted: str) -> np.ndarray:
    image = image if wanted in ("", image.mode) else image.convert(wanted)
    return np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, -1)


def _raw_of(image: Image.Image) -> str:
    """How a file with one tile stores its pixels, in Pillow's words: ``RGB`` has 8 bits per channel, ``RGB;16B`` has 16."""
    tiles: Any = getattr(image, "tile", ())
    return str(tiles[0][3]) if len(tiles) == 1 else ""


def _open(path: AnyFile, form: Form) -> Image.Image | str:
    """An image that Pillow reads, opened; or ``npy``, or the kind of a file that is read plane by plane (`planes.kind_of`).

    Raises:
        Unreadable: it is no image; or the library that reads it is not installed.
    """
    try:
        image = open_image(path)
    except Unreadable as error:
        if kind := "npy" if is_npy(path) else kind_of(path):
            if kind == "tiff" and not _has_tifffile():
                raise Unreadable(f"{error}; or {TIFF_READER}") from None
            return kind
        raise
    if image.format != "TIFF":
        return image
    try:
        planes = _has_planes(image, form)
    except Exception as error:
        image.close()
        raise Unreadable(_reason(error)) from error
    if planes:
        image.close()
        return "tiff"
    return image


def _has_planes(image: Image.Image, form: Form) -> bool:
    """Whether Pillow would lose something of a TIFF file, or ``form`` asks for more than its first page.

    Raises:
        MissingReader: so it is, and tifffile is not installed.
    """
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    check_description(image)
    stored = look(image)
    about = str(image.tag_v2.get(DESCRIPTION, ""))
    asked = form.pages != "auto" or form.projection is not None
    paged = stored.pages > 1 and (asked or about.startswith("ImageJ=") or "<OME" in about)
    more = stored.channels > len(image.getbands()) and isinstance(form.channels, tuple)
    signed = form.range is not None and image.mode.startswith("I")  # or of 32 bits
    if not (stored.refused or paged or more or signed):
        return False
    if not _has_tifffile():
        if stored.refused or (paged and asked) or (signed and image.mode == "I"):
            raise MissingReader(f"{stored.refused}; or {TIFF_READER}" if stored.refused else TIFF_READER)
        return False
    return True


@cache_result
def _has_tifffile() -> bool:
    try:
        import tifffile  # noqa: F401
    except ImportError:
        return False
    return True


def _read_planes(path: AnyFile, kind: str, form: Form) -> tuple[np.ndarray, Content]:
    page = path.number if isinstance(path, Page) else 0
    with open_stack(path, kind, windowed=form.range is None) as stack:
        values, notes = combine(stack, form.pages, form.projection, page)
        if form.pages == "images" and stack.pages > 1 and not isinstance(path, Page):  # of a source that lists no pages
            notes["pages"] = stack.pages
        array, content = _formed(_turned(values, stack.turn), form, notes, names=names_in(stack, form.pages))
        return array, replace(content, micrometers=stack.micrometers)


def _values(
    image: Image.Image, deep: tuple[np.ndarray, np.ndarray | None] | None, stored: Stored, notes: dict[str, int]
) -> np.ndarray:
    """The pixels as they are stored, on white where they are transparent: uint8, or uint16 where they have 16 bits, [H, W] or
    [H, W, 3]."""
    if deep is None or image.mode == "CMYK":
        if stored.bits > 8:
            notes["bits"] = stored.bits
        flat, opacity = _flatten(
            image if deep is None else _eight_bit(image.mode, *deep, 16), "L" if _is_gray(image) else "RGB"
        )
        lowest, highest, values = *opacity, np.asarray(flat)
    else:
        values, alpha = deep
        if alpha is None:
            return values
        lowest, highest = int(alpha.min()), int(alpha.max())
        share = (alpha / 255)[..., None] if values.ndim == 3 else alpha / 255
        values = np.rint(values * share + 65535 * (1 - share)).astype(np.uint16)
    if lowest < 255:
        notes["transparent" if highest else "blank"] = 1
    return values


def _formed(
    values: np.ndarray, form: Form, notes: dict[str, int], whole: tuple[int, int] | None = None, names: Names = ()
) -> tuple[np.ndarray, Content]:
    """An image from its stored values, [H, W] or [H, W, S] of any numbers.

    Args:
        whole: the size of the image in its file, if it was decoded at a fraction of that.
        names: of its channels, if it has any.

    Raises:
        ValueError: they do not fit the form.
        DataError: there are other channels.
    """
    values = values[..., None] if values.ndim == 2 else values
    deep = values.dtype.kind == "u" and values.dtype.itemsize == 2
    if values.dtype.kind == "f" and (bad := int((~np.isfinite(values)).sum())):
        raise ValueError(f"{bad:,} of its {values.size:,} values are NaN or infinite; repair or remove it")
    if form.range is not None:
        notes |= {"clipped": 1} if ((values < form.range[0]) | (values > form.range[1])).any() else {}
    elif deep:
        notes |= {"bright": 1} if too_bright(values, form.bits) else {}
    elif values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        if low < 0 or high > 1:
            raise ValueError(
                f"its values go from {low:g} to {high:g}; say which are black and white: --set data.range=[...]"
            )
    elif values.dtype != np.uint8:
        raise ValueError(
            f"its values have the type {values.dtype}; say which are black and white: --set data.range=[...]"
        )
    pick = choose_channels(values.shape[2], names, form.channels, "the file")
    if pick.places is not None and (lost := values.shape[2] - len({*pick.places})):
        notes["unpicked"] = lost
    if (
        form.channels == "gray"
        and pick.luma
        and int(np.ptp(to_levels(values, form.bits, 8, form.range), axis=2).max()) > GRAYISH
    ):
        notes["color"] = 3
    array = pick(to_levels(values, form.bits, form.depth, form.range))
    plain = deep and form.range is None
    peak = peak_of(values if plain else to_levels(values, form.bits, 8, form.range))
    return np.ascontiguousarray(array), Content(peak, 16 if plain else 8, notes, whole or array.shape[:2])


def _turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """An array [H, W, ...], turned upright."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    values = values[::-1] if orientation in (3, 4, 7, 8) else values
    return values[:, ::-1] if orientation in (2, 3, 6, 7) else values


def is_npy(path: AnyFile) -> bool:
    """Whether a file begins as an npy file."""
    try:
        if isinstance(path, Path) and not path.is_file():
            return False
        with path.open("rb") as handle:
            return handle.read(len(NPY)) == NPY
    except Exception:
        return False


def read_npy(path: AnyFile, kinds: str = NUMBERS) -> np.ndarray:
    """The array of an npy file, numbers [H, W] or [H, W, C]. Nothing is unpickled.

    Args:
        kinds: of numbers that are read, in numpy's letters.

    Raises:
        ValueError: it is no image.
    """
    with open_npy(path, kinds) as (handle, shape, dtype):
        handle.seek(0)
        array = np.lib.format.read_array(handle, allow_pickle=False, max_header_size=MAX_HEADER)
    assert array.shape == shape
    return array.astype(dtype.newbyteorder("="), copy=False)


@contextmanager
def open_npy(path: AnyFile, kinds: str = NUMBERS) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype]]:
    """An npy file, open, with the shape and the type of its image. Its header is checked, and against it the size of the file,
    before any of the array is read.

    Raises:
        ValueError: it is no image, a larger one than is read, or is cut off.
    """
    if (size := _bytes_of(path)) > MAX_BYTES:
        raise ValueError(f"its {size:,} bytes are more than {MAX_BYTES >> 30} GiB")
    with path.open("rb") as handle:
        version = np.lib.format.read_magic(handle)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(handle, max_header_size=MAX_HEADER)
        if len(shape) not in (2, 3) or 0 in shape or dtype.kind not in kinds:
            raise ValueError(f"its array is {dtype} {list(shape)}; an image is [H, W] or [H, W, C], of numbers")
        if shape[0] * shape[1] > MAX_PIXELS:
            raise ValueError(f"{shape[1]} x {shape[0]} is more than {MAX_PIXELS // 1_000_000} megapixels")
        if len(shape) == 3 and shape[2] > MOST:
            last = "; channels come last" if shape[0] <= MOST else ""
            raise ValueError(f"it has {shape[2]} channels; there can be 1 to {MOST}{last}")
        wanted, found = math.prod(shape) * dtype.itemsize, -handle.tell() + handle.seek(0, SEEK_END)
        if found < wanted:
            raise ValueError(f"truncated: it has {found:,} of the {wanted:,} bytes of its array")
        if found > wanted:
            raise ValueError(f"it has {found - wanted:,} bytes behind its array; save each array in a file of its own")
        yield handle, tuple(shape), dtype


def _check_order(shape: Sequence[int], form: Form) -> None:
    """Refuse the array of an npy file whose channels seem to come first, unless the recipe names its channels.

    Raises:
        ValueError: the channels seem to come first.
    """
    if len(shape) == 3 and shape[0] <= 4 and shape[2] > 3 and not isinstance(form.channels, tuple):
        raise ValueError(
            f"its array is {list(shape)}, an image of {shape[0]} x {shape[1]} pixels with {shape[2]} channels. If its channels "
            "come first, move them to the end; else name them with --set data.channels=[...]"
        )


def _draft(image: Image.Image, size: tuple[int, int]) -> tuple[int, int] | None:
    """Have libjpeg decode a JPEG file at a fraction of its size, if that is still `DRAFT_GAP` times ``size``.

    Returns:
        the (height, width) of the whole image when upright; None if it is decoded as it is.
    """
    if image.format != "JPEG":
        return None
    turned = orientation_of(image) >= 5
    height, width = size[::-1] if turned else size
    before = image.size
    image.draft(image.mode, (DRAFT_GAP * width, DRAFT_GAP * height))
    return None if image.size == before else before if turned else before[::-1]


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
            raise ValueError(
                f"its pixels are whole numbers from {low} to {high} ({stored.bits} bits); say which are black and white with "
                f"--set data.range=[...], or {REMEDY}"
            )
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
        if isinstance(path, InMemory):
            image = Image.open(path.open(), formats=_formats_of(path.content))
        else:
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
    if isinstance(path, Page):
        return _bytes_of(path.file)
    return path.size if isinstance(path, Within) else 0


@cache_result
def _formats() -> list[str]:
    Image.init()
    return sorted(FORMATS & set(Image.OPEN))


def begins_plainly(content: bytes) -> bool:
    """Whether a file is JPEG or PNG, which Pillow alone reads, by its first bytes."""
    return content.startswith((b"\xff\xd8\xff", SIGNATURE))


def _formats_of(content: bytes) -> list[str]:
    """The formats that a file may have, by its first bytes: to ask each of them takes longer than to decode a small file."""
    if begins_plainly(content):
        return ["JPEG"] if content[0] == 0xFF else ["PNG"]
    return _formats()


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
        return (image if image.mode == mode else image.convert(mode)), (255, 255)
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


def is_turned(path: AnyFile) -> bool:
    """Whether the EXIF tag of an image turns it; False for a file that Pillow does not read."""
    opened = _open(path, Form())
    if isinstance(opened, str):
        return False
    with opened as image:
        return orientation_of(image) > 1


_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
