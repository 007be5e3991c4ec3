"""Decode image files to uint8 arrays: a single file, or many in parallel into one cached array."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache as cache_result
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image

from petriscope.core.device import cores
from petriscope.core.errors import DataError
from petriscope.core.progress import progress
from petriscope.core.recipe import DataSection
from petriscope.data import cache
from petriscope.data.index import Recalled

MAX_PIXELS = 64_000_000
# Formats that Pillow decodes itself. For others it starts a program (Ghostscript for EPS), or they are no raster images.
FORMATS = frozenset(
    [
        "AVIF",
        "BMP",
        "DDS",
        "DIB",
        "GIF",
        "ICO",
        "IM",
        "JPEG",
        "JPEG2000",
        "PCX",
        "PNG",
        "PPM",
        "PSD",
        "QOI",
        "SGI",
        "SUN",
        "TGA",
        "TIFF",
        "WEBP",
    ]
)
# Suffixes of image files. What a file holds is decided by its content alone. Icons and files of layers, which often lie beside
# images, are left out.
# fmt: off
SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".tif", ".tiff", ".webp", ".gif", ".bmp", ".dib",
    ".avif", ".avifs", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".pcx", ".qoi",
    ".sgi", ".ras", ".tga",
)
# fmt: on
CHUNK = 32  # images per task of a thread
WINDOW = 16  # tasks in memory at a time, per thread

Filter = Literal["nearest", "box", "bilinear", "bicubic", "lanczos"]
Channels = Literal["auto", "gray", "rgb"]


@dataclass(frozen=True)
class Decoded:
    """The readable images of a list of files.

    Args:
        pixels: uint8 [M, H, W, C]; mapped from disk or in memory.
        digests: uint8 [M, 16], a hash of each of them.
        kept: int64 [K], the indices of the readable files in the list, which are also their rows in ``pixels``.
        warnings: what the user should know, one sentence each.
    """

    pixels: np.ndarray
    digests: np.ndarray
    kept: np.ndarray
    warnings: list[str]


class Unreadable(Exception):
    """Why one image cannot be used."""


def decode_file(
    path: Path | str,
    size: tuple[int, int] | None = None,
    filter: Filter = "bilinear",
    channels: Channels = "auto",
    bits: int = 16,
) -> np.ndarray:
    """Decode one image: its first frame, turned upright by its EXIF tag, with transparent parts on white.

    Args:
        path: a file in one of `FORMATS`, of up to 64 megapixels.
        size: (height, width) to resize to, by ``filter``.
        channels: ``auto``: gray for a gray image, else RGB.
        bits: significant bits of a 16-bit gray image; its values are scaled by 255 / (2**bits - 1).

    Returns:
        uint8 [H, W, 1 or 3], 0..255.

    Raises:
        DataError: the image cannot be read. The message names it and says why.
    """
    try:
        return _decode(Path(path), size, filter, channels, bits)[0]
    except Unreadable as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from None


def decode_files(paths: Sequence[Path], names: Sequence[str], section: DataSection, source: str) -> Decoded:
    """Decode many images to one shape, in parallel. A second call takes them from the cache.

    Args:
        paths: the files. The cache knows them by their contents.
        names: the name of each file in messages.
        section: size, filter, channels, bits, unreadable and memory.
        source: what the user named.

    Raises:
        DataError: an image is unreadable and ``section.unreadable`` is ``stop``, or none is readable.
        PetriscopeError: the disk of the cache is full.
    """
    options = (section.height_width, section.filter, section.channels, section.bits, section.unreadable)
    contents = cache.contents(paths, source)
    key = cache.make_key("images", tuple(zip(names, contents.values, strict=True)), options)
    pixels, about = cache.fetch_or_store(key, True, lambda: _decode_to_cache(key, paths, names, section, contents))
    digests = cache.row_digests(pixels)
    if not cache.choose_mapped(pixels.nbytes, section.memory, source):
        pixels = np.array(pixels)
    return Decoded(pixels, digests, np.array(about["kept"], dtype=np.int64), list(about["warnings"]))


def resize(image: np.ndarray, size: tuple[int, int], filter: Filter) -> np.ndarray:
    """Resize an image, uint8 [H, W, C], to ``size`` (height, width)."""
    if image.shape[:2] == size:
        return image
    pixels = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    out = np.asarray(pixels.resize((size[1], size[0]), Image.Resampling[filter.upper()]))
    return out[..., None] if out.ndim == 2 else out


def image_size(path: Path) -> tuple[int, int]:
    """The (height, width) of an image when upright, from its header.

    Raises:
        DataError: the file cannot be read.
    """
    header, reason = probe_file(path)
    if header is None:
        raise DataError(f"{path} cannot be read as an image: {reason}")
    return header[0], header[1]


def scale_16_bit(values: np.ndarray, bits: int) -> np.ndarray:
    """Scale uint16 values in 0..2**bits-1 to uint8 in 0..255, rounded to the nearest.

    Raises:
        ValueError: a value is out of range.
    """
    top = 2**bits - 1
    if (peak := int(values.max(initial=0))) > top:
        raise ValueError(f"its brightest pixel, {peak}, is more than data.bits={bits} allows; increase data.bits")
    if int(values.min(initial=0)) < 0:
        raise ValueError("it has pixels below 0")
    return ((values.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)


def dim_warning(peak: int, bits: int) -> list[str]:
    """A warning if 16-bit images use less than a sixteenth of their range, else none.

    Args:
        peak: the largest value in all images.
        bits: the significant bits of a value.
    """
    top = 2**bits - 1
    if peak >= (top + 1) / 16:
        return []
    fit = max(8, peak.bit_length())
    return [
        f"the brightest pixel has the value {peak} of {top}, so the images are nearly black; "
        f"if the camera has {fit} bits, use --set data.bits={fit}"
    ]


def workers() -> int:
    """The number of threads for decoding: the processors that this process may use, at most 16."""
    return min(cores(), 16)


def _decode_to_cache(
    key: str, paths: Sequence[Path], names: Sequence[str], section: DataSection, contents: Recalled
) -> None:
    warnings: list[str] = []
    bad: dict[int, str] = {}
    with ThreadPoolExecutor(workers()) as pool:
        size, channels = section.height_width, section.channels
        if size is None or channels == "auto":
            size, channels = _agree(pool, paths, section, warnings, bad)
        _refuse(bad, names, section, len(paths))
        depth = 1 if channels == "gray" else 3
        peak: int | None = None

        def decode(start: int) -> tuple[np.ndarray, dict[int, str], int | None]:
            stop = min(start + CHUNK, len(paths))
            block = np.zeros((stop - start, *size, depth), dtype=np.uint8)
            wrong: dict[int, str] = {}
            brightest: int | None = None
            for index in range(start, stop):
                if index in bad:
                    continue
                try:
                    block[index - start], top = _decode(paths[index], size, section.filter, channels, section.bits)
                except Unreadable as error:
                    wrong[index] = str(error)
                else:
                    brightest = top if brightest is None else max(brightest, top or 0)
            return block, wrong, brightest

        about: dict[str, object] = {}

        def blocks() -> Iterator[np.ndarray]:
            nonlocal peak
            span = CHUNK * WINDOW * workers()
            with progress("decoding", len(paths)) as bar:
                for first in range(0, len(paths), span):
                    starts = range(first, min(first + span, len(paths)), CHUNK)
                    for block, wrong, brightest in pool.map(decode, starts):
                        bad.update(wrong)
                        if brightest is not None:
                            peak = max(peak or 0, brightest)
                        bar.advance(len(block))
                        yield block
            if changed := contents.changed(paths):
                raise DataError(
                    f"{len(changed):,} image{'s' if len(changed) > 1 else ''} changed while being read, the first: "
                    f"{names[changed[0]]}; start again when nothing writes to them"
                )
            _refuse(bad, names, section, len(paths))
            if bad:
                warnings.append(f"{_list_bad(bad, names)}; left out")
            if peak is not None:
                warnings.extend(dim_warning(peak, section.bits))
            about.update(kept=[i for i in range(len(paths)) if i not in bad], warnings=warnings)

        cache.store(key, (len(paths), *size, depth), np.dtype(np.uint8), blocks(), about)


def _agree(
    pool: ThreadPoolExecutor, paths: Sequence[Path], section: DataSection, warnings: list[str], bad: dict[int, str]
) -> tuple[tuple[int, int], Channels]:
    """Choose one size and number of channels for all images from the headers of the files."""
    sizes: Counter[tuple[int, int]] = Counter()
    gray = True
    for index, (header, reason) in enumerate(pool.map(probe_file, paths)):
        if header is None:
            bad[index] = reason
            continue
        sizes[header[:2]] += 1
        gray = gray and header[2]
    size = section.height_width
    if size is None and sizes:
        size = max(sizes, key=lambda item: (sizes[item], item))
        if len(sizes) > 1:
            warnings.append(
                f"the images have {len(sizes):,} sizes; all were resized to the most common one, "
                f"{size[0]} x {size[1]} (height x width, {sizes[size]:,} of {sum(sizes.values()):,}); "
                "choose another with --set data.size=N"
            )
    channels: Channels = section.channels
    if channels == "auto":
        channels = "gray" if gray and sizes else "rgb"
    return size or (1, 1), channels


def _refuse(bad: dict[int, str], names: Sequence[str], section: DataSection, count: int) -> None:
    if not bad:
        return
    if section.unreadable == "stop":
        raise DataError(
            f"{_list_bad(bad, names)}; repair or remove them, or leave them out with --set data.unreadable=skip"
        )
    if len(bad) == count:
        raise DataError(f"no image is left: {_list_bad(bad, names)}")


def _list_bad(bad: dict[int, str], names: Sequence[str]) -> str:
    shown = [f"{names[index]} ({bad[index]})" for index in sorted(bad)[:5]]
    more = f" and {len(bad) - 5:,} more" if len(bad) > 5 else ""
    return f"{len(bad):,} image{'s' if len(bad) > 1 else ''} cannot be read: {', '.join(shown)}{more}"


def probe_file(path: Path) -> tuple[tuple[int, int, bool] | None, str]:
    """Read the header of an image file.

    Returns:
        ((height, width, gray), ""), the size when upright; or (None, the reason why the header cannot be read).
    """
    try:
        with open_image(path) as image:
            turned = _orientation(image) >= 5
            if turned and image.format == "TIFF":  # recent versions of Pillow turn these when loading
                image.load()
                turned = _orientation(image) >= 5
            width, height = reversed(image.size) if turned else image.size
            return (height, width, _is_gray(image)), ""
    except Unreadable as error:
        return None, str(error)
    except Exception as error:
        return None, _reason(error)


def _decode(
    path: Path, size: tuple[int, int] | None, filter: Filter, channels: Channels, bits: int
) -> tuple[np.ndarray, int | None]:
    """The image, and the largest value before scaling if it has 16 bits."""
    with open_image(path) as image:
        try:
            image.load()
            orientation, gray = _orientation(image), _is_gray(image)
            peak = None
            if image.mode == "F":
                raise ValueError("its pixels are floating-point numbers; save it with 8 or 16 bits")
            if image.mode.startswith("I"):
                values = np.asarray(image)
                peak = int(values.max(initial=0))
                flat = Image.fromarray(scale_16_bit(values, bits))
            else:
                flat = _flatten(image, "L" if gray else "RGB")
            if orientation in _UPRIGHT:
                flat = flat.transpose(_UPRIGHT[orientation])
            if channels != "auto":
                flat = flat.convert("L" if channels == "gray" else "RGB")
            array = np.asarray(flat)
        except Exception as error:  # Pillow's decoders raise many kinds on damaged files
            raise Unreadable(_reason(error)) from error
    array = array[..., None] if array.ndim == 2 else array
    return (resize(array, size, filter) if size else array), peak


def open_image(path: Path) -> Image.Image:
    """Open an image file in one of `FORMATS`; its content decides which, not its name. Nothing is decoded yet.

    Raises:
        Unreadable: it is no regular file, no such image, or has more than 64 megapixels.
    """
    try:
        if not path.is_file():  # a named pipe would be waited for without end
            raise Unreadable("not a regular file" if path.exists() else "no such file")
        image = Image.open(path, formats=_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Unreadable(f"more than {MAX_PIXELS // 1_000_000} megapixels") from None
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(_reason(error)) from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise Unreadable(f"{image.width} x {image.height} is more than {MAX_PIXELS // 1_000_000} megapixels")
    return image


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


def _flatten(image: Image.Image, mode: Literal["L", "RGB"]) -> Image.Image:
    if not (image.has_transparency_data or image.mode in ("La", "RGBa")):
        return image.convert(mode)
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA"))
    return white.convert(mode)


def _orientation(image: Image.Image) -> int:
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
