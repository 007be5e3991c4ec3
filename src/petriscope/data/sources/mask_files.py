"""Read mask files: the number or the color of each pixel."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from petriscope.core.errors import DataError
from petriscope.core.masks import IGNORE
from petriscope.core.progress import track
from petriscope.data import cache
from petriscope.data.decode import (
    NUMBERS,
    Unreadable,
    image_size,
    is_npy,
    is_turned,
    open_image,
    orientation_of,
    read_npy,
    resize,
    workers,
)
from petriscope.data.in_memory import AnyFile
from petriscope.data.sources.listing import ImageFile, say_turned
from petriscope.data.sources.mask_values import GRAY, MOST_UNNAMED, ValueTable, pack, refusal
from petriscope.data.stored import look
from petriscope.data.tiles import padded

LOSSLESS = frozenset(["BMP", "DIB", "GIF", "IM", "PCX", "PNG", "PPM", "QOI", "SGI", "SUN", "TGA", "TIFF"])
MOST_VALUE = 2**31 - 1
MANY = 1000  # values of a mask that are kept; an indexed image has 256 at most
FIX = "a mask has one class number per pixel: save it as an indexed or gray image"


@dataclass(frozen=True, eq=False)
class StoredMask:
    """What a mask file holds.

    Args:
        values: whole numbers [H, W] from 0: gray values, or indices of a palette; or, if ``colored``, colors as 0xRRGGBB.
        colored: the file is in color, and some pixel is not gray.
        palette: int64 [P], the color 0xRRGGBB of each index; None for a file without a palette.
        turned: the EXIF tag of the image turns it, and its mask has no such tag.
    """

    values: np.ndarray
    colored: bool = False
    palette: np.ndarray | None = None
    turned: bool = False

    @property
    def is_gray(self) -> bool:
        """Whether there is a palette, and all colors used are gray."""
        return self.palette is not None and not (self.palette[np.unique(self.values)] % GRAY).any()

    @property
    def colors(self) -> np.ndarray:
        """int64 [H, W], 0xRRGGBB; a gray value v has the color (v, v, v)."""
        if self.colored:
            return self.values
        return self.values.astype(np.int64) * GRAY if self.palette is None else self.palette[self.values]


@dataclass(frozen=True)
class _Values:
    """The values that a mask has, as far as they must fit to those of other masks.

    Args:
        used: in rising order; only the first and the last where there are many.
        colored, turned: as of `StoredMask`.
        palette: the color of each; None for a file without a palette.
        gray: `StoredMask.is_gray`.
    """

    used: list[int]
    colored: bool
    palette: list[int] | None
    gray: bool
    turned: bool

    @classmethod
    def of(cls, stored: StoredMask) -> _Values:
        used = np.unique(stored.values).tolist()
        palette = None if stored.palette is None else stored.palette[used].tolist()
        if len(used) > MANY:
            used = [*used[: MANY - 1], used[-1]]
        return cls(used, stored.colored, palette, stored.is_gray, stored.turned)


class MaskReader:
    """Reads masks, and collects the values that they have, since these must fit together over all splits.

    Args:
        table: the values of the classes; None: class numbers.
        size: (height, width) that masks are resized to, by nearest neighbor.
        own: masks keep their own sizes; what is added up to ``size`` is unlabeled.
    """

    def __init__(self, table: ValueTable | None, size: tuple[int, int], own: bool = False) -> None:
        self.table, self.size, self.own = table, size, own
        self.numbers: set[int] = set()  # some of the values, where many
        self.colors: set[int] = set()
        self.beyond: Path | None = None  # the first file with values that are no class numbers
        self.palette: dict[int, tuple[int, Path]] = {}  # color of an index, and the first file with it
        self.indexed_gray: Path | None = None  # the first file whose indices have other gray values
        self.plain: Path | None = None  # the first without a palette
        self.turned: list[AnyFile] = []  # images that are turned upright, and their masks are not

    def read(self, pairs: Sequence[ImageFile], split: str, images: Sequence[str]) -> tuple[np.ndarray, dict[int, str]]:
        """The masks of some images, uint8 [N, *size], as class numbers; and for each that cannot be read, the reason. A second
        call takes them from the cache.

        Args:
            images: digests of the files of the images.

        Raises:
            DataError: a value is not in the table; or an index has different colors in different files.
        """
        files = [pair.mask_file for pair in pairs]
        contents = cache.contents(files, f"{files[0]} and the other {split} masks")
        known = tuple(zip(map(str, files), contents.values, images, strict=True))
        key = cache.make_key("masks", known, self.table, self.size, *(["own sizes"] if self.own else []))
        about: dict[str, list[str | dict[str, Any]]] = {}

        def blocks() -> Iterator[np.ndarray]:
            masks, about["found"] = self._read(pairs, split)
            contents.check_unchanged(list(map(str, files)))
            yield masks

        def store() -> None:
            cache.store(key, (len(pairs), *self.size), np.dtype(np.uint8), blocks(), about)

        masks, noted = cache.fetch_or_store(key, False, store)
        wrong = {index: found for index, found in enumerate(noted["found"]) if isinstance(found, str)}
        for pair, found in zip(pairs, noted["found"], strict=True):
            if not isinstance(found, str):
                self._collect(_Values(**found), pair)
        return masks, wrong

    def _read(self, pairs: Sequence[ImageFile], split: str) -> tuple[np.ndarray, list[str | dict[str, Any]]]:
        """The masks, and of each what `_collect` takes, or why it cannot be read."""
        out = np.full((len(pairs), *self.size), IGNORE, dtype=np.uint8)

        def read_one(index: int) -> str | dict[str, Any]:
            file = pairs[index].mask_file
            try:
                stored = read_mask(file, pairs[index].path)
            except DataError as error:
                return str(error)
            if self.table is not None:
                wanted, unlabeled = self._wanted(stored, file)
                numbers = self.table.classes_of(wanted, unlabeled, str(file))
            elif stored.colored or stored.values.max(initial=0) > IGNORE:
                return asdict(_Values.of(stored))
            else:
                numbers = stored.values.astype(np.uint8)
            out[index] = fitted(numbers, self.size, self.own)
            return asdict(_Values.of(stored))

        with ThreadPoolExecutor(workers()) as pool:
            read = track(pool.map(read_one, range(len(pairs))), f"reading {split} masks", len(pairs))
            return out, list(read)

    def check(self, source: str, warnings: list[str]) -> None:
        """Refuse values that are no class numbers, and warn of masks that may not lie on their images.

        Raises:
            DataError: masks without a table are in color, have numbers above 255, or are partly indexed and partly gray.
        """
        warnings += say_turned(self.turned, ", and the mask has no such tag; it is taken as drawn")
        if self.indexed_gray is not None and self.plain is not None and not self.numbers <= {0, 1}:
            raise DataError(
                f"{self.indexed_gray} is an indexed image, whose gray values are not its indices, and {self.plain} a gray image; "
                "it is not clear which numbers are the classes: save all masks as gray images"
            )
        if self.beyond is None:
            return
        where = f"{source}, first in {self.beyond}"
        if not self.colors:
            raise refusal(self.numbers, where)
        grays = {number * GRAY for number in self.numbers if number <= IGNORE}
        raise refusal(self.colors | grays, where, colored=True)

    def _wanted(self, stored: StoredMask, file: Path) -> tuple[np.ndarray, np.ndarray]:
        """The numbers or the colors of a mask, whichever the table has; and where it is unlabeled: where its number or index
        is 255."""
        assert self.table is not None
        if self.table.colored:
            indexed = stored.palette is not None
            return stored.colors, (stored.values == IGNORE) if indexed else np.zeros(stored.values.shape, dtype=bool)
        if stored.colored:
            raise DataError(f"{file} is in color, and {self.table.place} has numbers; list the colors there")
        return stored.values, stored.values == IGNORE

    def _collect(self, found: _Values, pair: ImageFile) -> None:
        file = pair.mask_file
        if found.turned:
            self.turned.append(pair.path)
        if self.table is not None:
            return
        if self.beyond is None and (found.colored or found.used[-1] > IGNORE):
            self.beyond = file
        values = self.colors if found.colored else self.numbers
        if len(values) <= MOST_UNNAMED:
            values.update(found.used)
        if found.palette is None:
            self.plain = self.plain or file
            return
        if found.gray:
            self.indexed_gray = self.indexed_gray or file
        for index, color in zip(found.used, found.palette, strict=True):
            known, first = self.palette.setdefault(index, (color, file))
            if known != color:
                raise DataError(
                    f"the index {index} is #{known:06x} in {first} and #{color:06x} in {file}, so it may mean different classes. "
                    "List the colors of the classes in data.mask_values, such as [[0,0,0],[255,0,0]]; or, if the indices are "
                    "class numbers whatever their colors, list these, such as [0,1]"
                )


def fitted(mask: np.ndarray, size: tuple[int, int], own: bool) -> np.ndarray:
    """A mask, uint8 [H, W], resized to ``size`` by nearest neighbor; or, with its ``own`` size, in the top left corner of that,
    and unlabeled beside it."""
    return padded(mask, size, IGNORE) if own else resize(mask[..., None], size, "nearest")[..., 0]


def read_mask(file: Path, image: AnyFile) -> StoredMask:
    """Read a mask.

    Args:
        file: in a lossless format, with 1 to 32 bits per pixel, indexed, gray, or in color without transparency; or an npy file
            with an array of numbers or truth values [H, W], or of colors [H, W, 3].
        image: its image, which must have the same size.

    Raises:
        DataError: the mask cannot be used. The message names it and says why.
    """
    tagged = False
    try:
        if is_npy(file):
            found = _of_array(file, read_npy(file, NUMBERS + "b"))
        else:
            with open_image(file) as opened:
                _check_form(file, opened)
                scale, tagged = _gray_step(opened), orientation_of(opened) > 1
                opened.load()
                found = _values(file, ImageOps.exif_transpose(opened), scale)
                if opened.format == "GIF" and found.is_gray:  # its encoder had to make a palette
                    found = StoredMask(found.colors & 255)
    except DataError:
        raise
    except Unreadable as error:
        raise DataError(f"{file} cannot be read as a mask: {error}") from None
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        raise DataError(f"{file} cannot be read as a mask: {error or type(error).__name__}") from None
    height, width = image_size(image)
    if found.values.shape != (height, width):
        raise DataError(
            f"{file} is {found.values.shape[0]} x {found.values.shape[1]} and its image {height} x {width} "
            "(height x width); a mask must have the size of its image"
        )
    return replace(found, turned=is_turned(image) and not tagged)


def _check_form(file: Path, image: Image.Image) -> None:
    stored = look(image)
    if image.format not in LOSSLESS or image.info.get("compression") == "jpeg":
        raise DataError(
            f"{file} is a {image.format} image, which may not keep exact numbers; save masks as PNG, with the class number "
            "nearest to each pixel"
        )
    if stored.pages > 1:
        raise DataError(f"{file} has {stored.pages} pages, and a mask has one; save one mask per file")
    whole = image.mode == "I" or image.mode.startswith("I;16")
    if image.mode not in ("1", "L", "P", "F", "RGB", "LA", "PA", "RGBA") and not whole:
        raise DataError(f"{file} is a {image.mode} image; {FIX}")
    if stored.inverted or (stored.refused and image.mode != "F") or (stored.bits == 16 and not whole):
        raise DataError(f"{file} stores its pixels in a form from which class numbers cannot be told; {FIX}")


def _raw_mode(image: Image.Image) -> str:
    """How the file stores its pixels, in Pillow's words."""
    tiles = getattr(image, "tile", [])
    options = tiles[0][3] if tiles else ""
    return str(options[0] if isinstance(options, tuple) else options)


def _gray_step(image: Image.Image) -> int:
    """What Pillow multiplies gray values of 2 or 4 bits by to fill 0..255."""
    match = re.match(r"L;([24])", _raw_mode(image))
    return 255 // (2 ** int(match.group(1)) - 1) if match else 1


def _values(file: Path, image: Image.Image, scale: int) -> StoredMask:
    if image.mode == "P":
        return _indexed(image)
    if image.mode in ("LA", "PA", "RGBA"):
        if np.asarray(image.getchannel("A")).min(initial=255) < 255:
            raise DataError(
                f"{file} has transparent pixels, and no rule says what they mean; save it without an alpha channel"
            )
        image = image.convert("L" if image.mode == "LA" else "RGB")
    values = np.asarray(image)
    if image.mode == "RGB":
        return _of_colors(values)
    values = _whole(file, values)
    return StoredMask(values // scale if scale > 1 else values.astype(np.uint8) if image.mode == "1" else values)


def _of_array(file: Path, values: np.ndarray) -> StoredMask:
    """What the array of an npy file holds, [H, W], [H, W, 1] or [H, W, 3]."""
    if values.ndim == 3 and values.shape[2] == 3 and values.dtype == np.uint8:
        return _of_colors(values)
    if values.ndim == 3 and values.shape[2] > 1:
        raise DataError(
            f"{file} is {values.dtype} {list(values.shape)}; a mask is an array [H, W] of class numbers, or uint8 [H, W, 3] of "
            "colors"
        )
    values = values.astype(np.uint8) if values.dtype.kind == "b" else _whole(file, values)
    if values.max(initial=0) > MOST_VALUE:
        raise DataError(f"{file} has the value {values.max()}; class numbers are small")
    return StoredMask(values.reshape(values.shape[:2]))


def _of_colors(values: np.ndarray) -> StoredMask:
    if (values == values[..., :1]).all():
        return StoredMask(values[..., 0])
    return StoredMask(pack(values), colored=True)


def _whole(file: Path, values: np.ndarray) -> np.ndarray:
    """Values as whole numbers from 0."""
    if values.dtype.kind == "f":
        if not (np.isfinite(values).all() and (values == np.rint(values)).all()):
            raise DataError(f"{file} has pixels that are not whole numbers; {FIX}")
        values = values.astype(np.int64)
    if values.size and values.min() < 0:
        raise DataError(f"{file} has the value {values.min()}; class numbers count from 0")
    return values


def _indexed(image: Image.Image) -> StoredMask:
    """The indices; but the gray values where these are class numbers, since then an encoder made the palette to save space."""
    values = np.asarray(image)
    colors = np.array(image.getpalette("RGB")).reshape(-1, 3)
    palette = np.zeros(256, dtype=np.int64)
    palette[: len(colors)] = pack(colors)
    stored = StoredMask(values, palette=palette)
    if stored.is_gray:
        grays = np.unique(palette[np.unique(values)] & 255)
        labeled = grays[grays != IGNORE]
        if np.array_equal(grays, np.unique(values)) or (len(labeled) > 1 and len(labeled) == labeled[-1] + 1):
            return StoredMask((palette & 255)[values])
    return stored
