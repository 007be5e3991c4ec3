"""Files that hold several planes: channels, slices of a volume, pages, frames, positions; and the image that becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from petriscope.core.channels import GRAY, MOST, RGB, Names, colors_of
from petriscope.core.names import tidy
from petriscope.data.in_memory import AnyFile

Pages = Literal["auto", "channels", "images"]
Projection = Literal["maximum", "mean", "middle"]

TIFF_READER = (
    "reading it needs tifffile, which is not installed: pip install tifffile imagecodecs, or 'petriscope[tiff]'"
)
MAX_PIXELS = 64_000_000  # of a plane
MAX_BYTES = 1 << 30  # of the planes of one image
START = 132  # bytes that tell what a file is
MAKERS = ("czi", "nd2", "lif")  # files of microscopes' makers
TIFF_STARTS = (b"II\x2a\x00", b"MM\x00\x2a", b"II\x2b\x00", b"MM\x00\x2b")


@dataclass(frozen=True)
class Stack:
    """What a file of planes holds.

    Args:
        height, width: of a plane in pixels.
        names: of the channels, as the file says them; else numbers; ``GRAY`` and ``RGB`` for those.
        load: the plane of a page and a slice, numbers of any type [H, W, C].
        pages: pages, frames, points in time or positions: images of their own.
        slices: of a volume, of every page.
        micrometers: height and width of a pixel; None: the file does not say.
        described: whether the file says what its planes are; else they are pages.
        itemsize: bytes of a value.
        turn: the orientation that the file asks for, 1 (upright) to 8, as in EXIF.
        noted: what else is not taken: kinds of `petriscope.data.contents.NOTES`, with their amounts.
    """

    height: int
    width: int
    names: Names
    load: Callable[[int, int], np.ndarray]
    pages: int = 1
    slices: int = 1
    micrometers: tuple[float, float] | None = None
    described: bool = False
    itemsize: int = 2
    turn: int = 1
    noted: dict[str, int] = field(default_factory=dict)


class MissingReader(ValueError):
    """The library that reads a format is not installed."""


def numbered(count: int) -> Names:
    """The names of channels that are no colors and have no names."""
    return GRAY if count == 1 else tuple(f"channel {number}" for number in range(1, count + 1))


def channel_names(found: Sequence[str], count: int) -> Names:
    """The names that a file gives to its channels; or numbers, if it does not give each one of its own."""
    names = tuple(map(tidy, found))
    if len(names) != count or count == 1 or not all(names) or len({*map(str.casefold, names)}) < count:
        return numbered(count)
    return RGB if count == 3 and colors_of(names) == (0, 1, 2) else names


def kind_of(path: AnyFile) -> str:
    """``tiff``, ``dicom``, ``czi``, ``nd2`` or ``lif``, by the first bytes; empty for any other file, and for one that cannot be
    read."""
    if isinstance(path, Path) and not path.is_file():  # a named pipe would be waited for without end
        return ""
    try:
        with path.open("rb") as handle:
            start = handle.read(START)
    except Exception:  # said where the file is opened as an image
        return ""
    if start[:4] in TIFF_STARTS:
        return "tiff"
    if start[128:132] == b"DICM":
        return "dicom"
    if start[:10] == b"ZISRAWFILE":
        return "czi"
    if start[:4] == b"\xda\xce\xbe\x0a":
        return "nd2"
    return "lif" if start[:4] == b"\x70\x00\x00\x00" and start[8:9] == b"\x2a" else ""


def names_in(stack: Stack, pages: Pages) -> Names:
    """The channels of an image of the stack."""
    if pages != "channels" or stack.pages == 1:
        return stack.names
    return numbered(stack.pages * len(stack.names))


def combine(
    stack: Stack, pages: Pages, projection: Projection | None, page: int = 0
) -> tuple[np.ndarray, dict[str, int]]:
    """The image of a stack, and what is not taken: kinds of `petriscope.data.contents.NOTES`, with their amounts.

    Args:
        pages: whether pages are channels of one image, or images; ``auto``: the first is taken, unless there is a projection
            and the file does not say what its planes are, which are slices then.
        projection: of slices: the highest value, the mean, or the slice in the middle; None: the first slice.
        page: that is taken.

    Returns:
        [H, W, C] of the type of the file; means are rounded to it.

    Raises:
        ValueError: there are more than `MOST` channels, or all takes more than `MAX_BYTES`.
    """
    names = names_in(stack, pages)
    if len(names) > MOST:
        raise ValueError(f"it has {len(names)} channels; there can be 1 to {MOST}")
    size = stack.height * stack.width * len(names) * stack.itemsize
    if size > MAX_BYTES:
        raise ValueError(f"an image of it takes {size:,} bytes, more than {MAX_BYTES >> 30} GiB")
    every = range(stack.pages)
    notes = dict(stack.noted)
    if pages == "channels":
        parts = [[(number, z) for z in range(stack.slices)] for number in every]
    elif pages == "auto" and projection is not None and not stack.described:
        parts = [[(number, z) for number in every for z in range(stack.slices)]]
    else:
        parts = [[(page, z) for z in range(stack.slices)]]
        notes |= {"pages": stack.pages} if pages == "auto" and stack.pages > 1 else {}
    notes |= {"slices": stack.slices} if projection is None and stack.slices > 1 else {}
    values = [_project(stack, places, projection) for places in parts]
    return values[0] if len(values) == 1 else np.concatenate(values, axis=2), notes


def _project(stack: Stack, places: list[tuple[int, int]], projection: Projection | None) -> np.ndarray:
    """One plane, [H, W, C], of those at the pages and slices."""
    if projection is None or len(places) == 1:
        return stack.load(*places[0])
    if projection == "middle":
        return stack.load(*places[len(places) // 2])
    out = stack.load(*places[0])
    kind = out.dtype
    out = out.astype(np.float64) if projection == "mean" else out.copy()
    for place in places[1:]:
        plane = stack.load(*place)
        np.maximum(out, plane, out=out) if projection == "maximum" else np.add(out, plane, out=out)
    if projection == "maximum":
        return out
    out /= len(places)
    return out.astype(kind) if kind.kind == "f" else np.rint(out).astype(kind)
