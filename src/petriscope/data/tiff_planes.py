"""TIFF and OME-TIFF files by tifffile: channels, slices and pages, their names, and micrometers per pixel."""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from petriscope.core.channels import RGB, Names
from petriscope.data.in_memory import AnyFile
from petriscope.data.planes import MAX_BYTES, TIFF_READER, MissingReader, Stack, channel_names

# Micrometers in a unit, as OME and ImageJ spell them.
UNITS = {
    "nm": 1e-3,
    "µm": 1.0,
    "μm": 1.0,
    "um": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "\\u00b5m": 1.0,
    "mm": 1e3,
    "cm": 1e4,
}
WHITE_IS_ZERO, PALETTE = 0, 3
UNKNOWN = {5: "CMYK", 8: "CIELAB", 9: "ICCLAB", 10: "ITULAB"}  # kinds of color that are not turned into RGB
AXES = "ZCYXS"  # the others are pages


@contextmanager
def opened(path: AnyFile, kind: str, windowed: bool) -> Iterator[Stack]:
    """The planes of a TIFF file. Images of OME and pages of one shape are pages; those with another shape than the first are not
    taken.

    Raises:
        MissingReader: tifffile, or what it needs for the compression, is not installed.
        Exception: of any kind, if the file is damaged.
    """
    try:
        import tifffile
    except ImportError:
        raise MissingReader(TIFF_READER) from None
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it cannot read is said here, or raised
    with path.open("rb") as handle, tifffile.TiffFile(handle, _multifile=False) as file:
        _check_tags(file)
        series = file.series[0]
        if file.is_ome and series.kind != "ome":
            raise ValueError("its metadata names planes in other files; save it as one OME-TIFF file")
        alike = [
            each
            for each in file.series
            if (each.axes, each.shape, each.dtype) == (series.axes, series.shape, series.dtype)
        ]
        yield _stack(file, alike)


def _stack(file: Any, alike: list[Any]) -> Stack:
    series = alike[0]
    axes, shape = str(series.axes), tuple(map(int, series.shape))
    frame = series.keyframe
    photometric, bits = int(frame.photometric), int(frame.bitspersample)
    if photometric in UNKNOWN:
        raise ValueError(f"its colors are {UNKNOWN[photometric]}, which is not read; save it as RGB")
    if series.dtype is None or series.dtype.kind not in "uifb":
        raise ValueError(f"its pixels are {series.dtype}, which is not read")
    size = dict(zip(axes, shape, strict=True))
    colors, samples = size.get("C", 1), size.get("S", 1)
    pages = math.prod(length for axis, length in zip(axes, shape, strict=True) if axis not in AXES)
    table = frame.colormap if photometric == PALETTE and samples == 1 else None
    names = _names(file, series, colors, samples, photometric)
    whole: dict[int, np.ndarray] = {}

    def load(page: int, z: int) -> np.ndarray:
        """A plane, taken from the pages that it is made of if the file has them one by one."""
        place, inner = divmod(page, pages)
        found = [_plane(alike[place], axes, shape, inner, z, color, whole) for color in range(colors)]
        values = np.concatenate(found, axis=2)
        if table is not None:
            return np.moveaxis(np.asarray(table)[:, values[..., 0]] >> 8, 0, 2).astype(np.uint8)
        if photometric == WHITE_IS_ZERO:
            values = (2**bits - 1 - values.astype(np.int64)).astype(values.dtype)
        if values.dtype.kind == "b" or bits < 8:  # in the range of 8 bits, as Pillow has them
            return (values.astype(np.uint16) * 255 // (2**bits - 1)).astype(np.uint8)
        return values

    return Stack(
        size["Y"],
        size["X"],
        RGB if table is not None else names,
        load,
        pages * len(alike),
        size.get("Z", 1),
        _micrometers(file),
        bool(file.is_ome or file.is_imagej or series.kind in ("lsm", "mmstack", "stk", "fluoview", "ndtiff")),
        series.dtype.itemsize,
        int(frame.tags.valueof(274, 1) or 1),
        {"series": len(file.series) - len(alike)} if len(file.series) > len(alike) else {},
    )


def _plane(
    series: Any, axes: str, shape: tuple[int, ...], page: int, z: int, color: int, whole: dict[int, np.ndarray]
) -> np.ndarray:
    """A plane of one channel, [H, W, S]."""
    inner = len(series.keyframe.axes)
    others = [(axis, length) for axis, length in zip(axes, shape, strict=True) if axis not in AXES]
    places = dict(zip([a for a, _ in others], np.unravel_index(page, [n for _, n in others] or [1]), strict=False)) | {
        "Z": z,
        "C": color,
    }
    outer = axes[: len(axes) - inner]
    single = len(series) == math.prod(shape[: len(outer)]) and tuple(shape[len(outer) :]) == tuple(
        series.keyframe.shape
    )
    if single:
        at = int(np.ravel_multi_index([int(places[a]) for a in outer], shape[: len(outer)])) if outer else 0
        found = series[at]
        if found is None:
            raise ValueError(f"its plane {at} is missing")
        _check_whole(found)
        values, left = found.asarray(), axes[len(outer) :]
    else:
        if math.prod(shape) * series.dtype.itemsize > MAX_BYTES:
            raise ValueError(f"its planes, which are stored as one, take more than {MAX_BYTES >> 30} GiB")
        if id(series) not in whole:
            for each in series.pages:
                if each is None:
                    raise ValueError("one of its planes is missing")
                _check_whole(each)
            whole.clear()  # one at a time
            whole[id(series)] = series.asarray()
        values, left = whole[id(series)], axes
    for axis in [a for a in left if a not in "YXS"]:
        values = np.take(values, int(places[axis]), left.index(axis))
        left = left.replace(axis, "", 1)
    if "S" not in left:
        values, left = values[..., None], left + "S"
    return np.ascontiguousarray(values.transpose([left.index(axis) for axis in "YXS"]))


def _check_tags(file: Any) -> None:
    """Refuse a file of which tags cannot be read: tifffile would do without the metadata that say what its planes are.

    Raises:
        ValueError: some lie beyond the end of the file, or are damaged.
    """
    page, form = file.pages[0], file.tiff
    file.filehandle.seek(page.offset)
    (count,) = struct.unpack(form.tagnoformat, file.filehandle.read(form.tagnosize))
    if len(page.tags) < count:
        raise ValueError(f"{count - len(page.tags)} of its {count} tags are damaged or cut off")


def _check_whole(page: Any) -> None:
    """Refuse a page of which the file has not all: tifffile would fill it with zeros.

    Raises:
        ValueError: it lies beyond the end of the file.
    """
    handle = page.parent.filehandle
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if offset <= 0 or count <= 0 or offset + count > handle.size:
            raise ValueError("its pixels are cut off, or were never written")


def _names(file: Any, series: Any, colors: int, samples: int, photometric: int) -> Names:
    """The names of all channels, those of OME or ImageJ if the file has them."""
    if colors == 1 and samples >= 3 and photometric in (2, 6):
        more = ("alpha",) if samples == 4 else tuple(f"channel {number}" for number in range(4, samples + 1))
        return (*RGB, *more)
    count = colors * samples
    found: list[str] = []
    with suppress(Exception):  # names are no reason to refuse an image
        if file.is_ome:
            pixels = _ome_pixels(file)
            found = [str(each.get("Name") or "") for each in _listed(pixels.get("Channel"))]
        elif file.is_imagej:
            found = [str(each) for each in file.imagej_metadata.get("Labels") or ()]
    return channel_names(found, count)


def _micrometers(file: Any) -> tuple[float, float] | None:
    """Height and width of a pixel, where OME or ImageJ says them. The resolution of other files is that of a printer."""
    with suppress(Exception):
        if file.is_ome:
            pixels = _ome_pixels(file)
            return _valid(
                *(float(pixels[f"PhysicalSize{a}"]) * UNITS[pixels.get(f"PhysicalSize{a}Unit", "µm")] for a in "YX")
            )
        if file.is_imagej:
            unit = UNITS[str(file.imagej_metadata["unit"]).lower()]
            tags = file.pages[0].tags
            return _valid(*(unit * tags.valueof(tag)[1] / tags.valueof(tag)[0] for tag in (283, 282)))
    return None


def _valid(height: float, width: float) -> tuple[float, float] | None:
    return (height, width) if 0 < height < 1e6 and 0 < width < 1e6 else None


def _ome_pixels(file: Any) -> Mapping[str, Any]:
    """The metadata of the first image of an OME-TIFF file."""
    import tifffile

    tree = tifffile.xml2dict(file.ome_metadata)["OME"]
    return _listed(tree["Image"])[0]["Pixels"]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
