"""How an image file stores its pixels, where Pillow hands over less than there is: pages, channels, bits, kinds of numbers."""

from __future__ import annotations

import struct
import sys
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from PIL import Image, TiffImagePlugin

from petriscope.data.in_memory import AnyFile

PAGED = ("TIFF", "GIF", "WEBP", "PNG", "MPO", "AVIF")  # the layers of a PSD file are no pages
REMEDY = "scale them to 0..255 and save it with 8 bits, or to 0..65535 with 16"
WHITE_IS_ZERO = 0
SIGNED, FLOAT = 2, 3
HEADER_BYTES = 1 << 14
DESCRIPTION, MAX_TAGS = 270, 1000  # the tag of TIFF files for words; tags that are looked at
# Raw modes of Pillow, whose last letter is the order of the bytes.
DEEP = tuple(f"{mode};16" for mode in ("RGB", "RGBA", "RGBX", "CMYK"))
OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


@dataclass(frozen=True)
class Stored:
    """What the header of an image file says of its pixels.

    Args:
        pages: pages or frames, one or more.
        channels: per pixel.
        bits: per channel.
        inverted: whether 0 is white, which Pillow knows of 8 bits alone.
        refused: why the pixels cannot be used; empty if they can.
    """

    pages: int
    channels: int
    bits: int
    inverted: bool = False
    refused: str = ""


def look(image: Image.Image) -> Stored:
    """What is stored in an image that was opened and not yet loaded."""
    pages = _pages(image)
    bands = len(image.getbands())
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _look_tiff(image, pages)
    if image.mode == "F":
        return Stored(pages, bands, 32, refused=_not_whole(32))
    return Stored(pages, bands, _bits(image))


def read_16_bit(image: Image.Image, again: Image.Image) -> np.ndarray | None:
    """The values of an image of several channels with 16 bits, uint16 [H, W, channels]; None if they cannot be had.

    Pillow takes the upper byte of each. So it is asked twice, the second time for the bytes in the other order.

    Args:
        image, again: the same file, opened twice. Both are loaded.
    """
    tiles = []
    for tile in getattr(again, "tile", ()):
        raw, *rest = (tile[3],) if isinstance(tile[3], str) else tile[3]
        if not str(raw).startswith(DEEP) or raw[-1] not in OTHER_ORDER:
            return None
        other = raw[:-1] + OTHER_ORDER[raw[-1]]
        tiles.append(type(tile)(*tile[:3], (other, *rest) if rest else other))
    if not tiles:
        return None
    again.tile = tiles  # type: ignore[attr-defined]
    values = np.asarray(image).astype(np.uint16)
    values <<= 8
    values |= np.asarray(again)
    return values


def describe_tiff(path: AnyFile) -> str:
    """A description of a TIFF file whose pixels Pillow does not know; empty for any other file."""
    with suppress(Exception), path.open("rb") as handle:
        header = handle.read(8)
        if header[:4] not in TiffImagePlugin.PREFIXES:
            return ""
        tags = TiffImagePlugin.ImageFileDirectory_v2(header + (handle.read(8) if header[2] == 43 else b""))
        handle.seek(tags.next)
        tags.load(handle)
        channels, bits = _one(tags, 277, 1), _one(tags, 258, 1)
        kind = {SIGNED: "signed", FLOAT: "floating-point"}.get(_one(tags, 339, 1), "unsigned")
        return (
            f"a TIFF file with {channels} channel{'s' if channels > 1 else ''} of {bits} bits ({kind}) in a form that is not "
            "read; save it with 1 channel (gray) or 3 (RGB) of 8 or 16 bits"
        )
    return ""


def check_description(image: TiffImagePlugin.TiffImageFile) -> None:
    """
    Raises:
        ValueError: the file ends before its description does, which may say what its pages are; Pillow goes on without it.
    """
    handle = image.fp
    if handle is None or DESCRIPTION in image.tag_v2:
        return
    place = handle.tell()
    try:
        handle.seek(0)
        head = handle.read(16)
        order, big = "<" if head[:2] == b"II" else ">", head[2:4] in (b"+\x00", b"\x00+")
        start = struct.unpack(order + ("Q" if big else "I"), head[8:16] if big else head[4:8])[0]
        handle.seek(start)
        count = struct.unpack(order + ("Q" if big else "H"), handle.read(8 if big else 2))[0]
        step = 20 if big else 12
        entries = handle.read(min(count, MAX_TAGS) * step)
        tags = [struct.unpack_from(order + "H", entries, at)[0] for at in range(0, len(entries) - step + 1, step)]
    finally:
        handle.seek(place)
    if DESCRIPTION in tags:
        raise ValueError("its description is cut off or damaged, so that it is not known what its pages are")


def _pages(image: Image.Image) -> int:
    if image.format not in PAGED:
        return 1
    try:
        return max(int(getattr(image, "n_frames", 1)), 1)
    except Exception:  # the first page may be whole if those behind it are not
        image.seek(0)
        return 1


def _look_tiff(image: TiffImagePlugin.TiffImageFile, pages: int) -> Stored:
    tags = image.tag_v2
    bits, kind = _one(tags, 258, 1), _one(tags, 339, 1)
    channels = max(_one(tags, 277, 1), len(image.getbands()) if image.mode == "RGB" else 1)
    refused = ""
    if kind == FLOAT or image.mode == "F":
        refused = _not_whole(bits)
    elif kind == SIGNED and bits == 8:
        refused = f"its pixels are signed 8-bit numbers; {REMEDY}"
    elif bits == 16 and _one(tags, 284, 1) == 2 and channels > 1:
        refused = (
            "its 16-bit channels are stored as separate planes, which is not read; save it with interleaved channels"
        )
    inverted = _one(tags, 262, 1) == WHITE_IS_ZERO and image.mode.startswith("I")
    depth = _one(tags, 32997, 1)  # slices of a volume
    return Stored(max(pages, depth), channels, bits, inverted, refused)


def _bits(image: Image.Image) -> int:
    """Bits per channel of a file that is no TIFF."""
    codec, _, _, args = next(iter(getattr(image, "tile", ())), ("", (), 0, ""))
    raw, *rest = args if isinstance(args, tuple) and args else (args,)
    if image.mode.startswith("I") or ";16" in str(raw) or codec == "SGI16" or (codec == "sgi_rle" and rest[-1] == 2):
        return 16
    if codec.startswith("ppm"):
        return max(int(rest[0]).bit_length(), 8)
    header = b""
    if image.format in ("JPEG2000", "AVIF") and (handle := getattr(image, "fp", None)) is not None:
        place = handle.tell()
        handle.seek(0)
        header = handle.read(HEADER_BYTES)
        handle.seek(place)
    if (start := header.find(b"\xff\x4f\xff\x51")) >= 0 and len(header) > start + 42:  # the size segment of JPEG 2000
        return max((header[start + 42] & 0x7F) + 1, 8)
    if (start := header.find(b"av1C")) >= 0 and len(header) > start + 6:
        return (12 if header[start + 6] & 0x20 else 10) if header[start + 6] & 0x40 else 8
    return 8


def _one(tags: TiffImagePlugin.ImageFileDirectory_v2, tag: int, otherwise: int) -> int:
    """The largest value of a tag."""
    value = tags.get(tag, otherwise)
    return int(max(value, default=otherwise) if isinstance(value, tuple) else value)


def _not_whole(bits: int) -> str:
    return f"its pixels are {bits}-bit floating-point numbers; {REMEDY}"
