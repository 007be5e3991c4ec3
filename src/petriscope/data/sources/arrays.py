"""Convert arrays of images to uint8 [N, H, W, C] as the recipe asks."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from petriscope.core.errors import DataError
from petriscope.core.recipe import DataSection
from petriscope.data import cache
from petriscope.data.contents import Content, Contents, peak_of
from petriscope.data.decode import resize, scale_16_bit, too_bright, workers
from petriscope.data.imageset import ImageSet

CHUNK = 1024
SOME = 1000  # images of a split whose brightness is looked at


def build_sets(
    pixels: dict[str, np.ndarray],
    targets: dict[str, np.ndarray],
    classes: tuple[str, ...],
    section: DataSection,
    source: str,
    warnings: list[str],
    groups: dict[str, np.ndarray] | None = None,
    named: bool = True,
) -> dict[str, ImageSet]:
    """Make image sets from arrays. The ids of the images are ``split/index``.

    Args:
        pixels: split -> images, as `convert` takes them.
        targets: split -> int64 [N].
        warnings: sentences for the user are added to it.
        groups: split -> strings [N].
        named: whether the classes have names in the source or in the recipe.
    """
    ready = convert(pixels, section, source, warnings)
    return {
        split: ImageSet(
            pixels=array,
            targets=targets[split],
            classes=classes,
            ids=np.array([f"{split}/{index}" for index in range(len(array))]),
            groups=None if groups is None else groups[split],
            named=named,
            known=(array, cache.row_digests(array)) if isinstance(array, np.memmap) else None,
            sizes=_sizes(pixels[split]),
        )
        for split, array in ready.items()
    }


def conform(sets: dict[str, ImageSet], section: DataSection, source: str, warnings: list[str]) -> dict[str, ImageSet]:
    """Convert image sets to the size and channels that the recipe asks for."""
    ready = convert({split: part.pixels for split, part in sets.items()}, section, source, warnings)
    return {split: replace(part, pixels=ready[split], sizes=_sizes(part.pixels)) for split, part in sets.items()}


def _sizes(pixels: np.ndarray) -> np.ndarray:
    """Height and width of each image, int [N, 2]."""
    return np.broadcast_to(np.array(pixels.shape[1:3]), (len(pixels), 2))


def convert(
    pixels: dict[str, np.ndarray], section: DataSection, source: str, warnings: list[str]
) -> dict[str, np.ndarray]:
    """Convert the images of all splits to one shape and to uint8.

    Args:
        pixels: split -> [N, H, W] or [N, H, W, 1 or 3], none of them empty: uint8, uint16 (scaled by
            ``section.bits``), or floats in 0..1. Mapped arrays stay mapped.

    Returns:
        split -> uint8 [N, H, W, C], with the same H, W and C, in C order.

    Raises:
        DataError: another type or shape, values out of range, or shapes that differ between splits.
    """
    for split, array in pixels.items():
        _check_form(array, f"the {split} images of {source}")
    pixels = {split: array[..., None] if array.ndim == 3 else array for split, array in pixels.items()}
    gray = section.channels == "gray" or (
        section.channels == "auto" and all(array.shape[3] == 1 for array in pixels.values())
    )
    sizes = {split: array.shape[1:3] for split, array in pixels.items()}
    if section.size is None and len(set(sizes.values())) > 1:
        listed = ", ".join(f"{split} {height} x {width}" for split, (height, width) in sizes.items())
        raise DataError(
            f"{source}: the images differ in size between splits ({listed}); choose one with --set data.size=N"
        )
    held = Contents(section.bits)
    for split, array in pixels.items():
        _check_values(array, split, source, held)
    warnings += held.warnings()
    return {split: _convert_one(array, gray, section) for split, array in pixels.items()}


def _check_form(array: np.ndarray, what: str) -> None:
    if array.ndim not in (3, 4) or 0 in array.shape[1:]:
        raise DataError(f"{what} have shape {list(array.shape)}; images are [N, H, W] or [N, H, W, C]")
    if array.ndim == 4 and array.shape[3] not in (1, 3):
        hint = "; channels come last" if array.shape[1] in (1, 3) else ""
        raise DataError(f"{what} have shape {list(array.shape)}; images have 1 (gray) or 3 (RGB) channels{hint}")
    if array.dtype.newbyteorder("=") not in (np.uint8, np.uint16) and array.dtype.kind != "f":
        raise DataError(f"{what} have type {array.dtype}; save them as uint8, uint16, or floats in 0 to 1")


def _check_values(array: np.ndarray, split: str, source: str, held: Contents) -> None:
    """Check the values of floats and 16-bit integers, and note how bright some of the images are."""
    _check_range(array, split, source, held)
    for index in np.unique(np.linspace(0, len(array) - 1, SOME).astype(int)):
        image = np.asarray(array[index])
        peak = peak_of(_to_uint8(image, 8) if image.dtype.kind == "f" else image)
        held.add(f"{split}/{index}", Content(peak, 16 if array.dtype.itemsize == 2 and array.dtype.kind == "u" else 8))


def _check_range(array: np.ndarray, split: str, source: str, held: Contents) -> None:
    if array.dtype == np.uint8:
        return
    if array.dtype.kind == "u":
        for index, image in enumerate(image for block in _chunks(array) for image in block):
            try:
                if too_bright(image, held.bits):
                    held.note(f"{split}/{index}", {"bright": 1})
            except ValueError as error:
                raise DataError(f"{source}: {split} image {index}: {error}") from None
        return
    low, high, start = np.inf, -np.inf, 0
    for block in _chunks(array):
        broken = np.flatnonzero(~np.isfinite(block).all(axis=(1, 2, 3)))
        if len(broken):
            raise DataError(
                f"{source}: {split} image {start + broken[0]} has NaN or infinite values; repair or remove it"
            )
        low, high, start = min(low, float(block.min())), max(high, float(block.max())), start + len(block)
    if low < 0 or high > 1:
        raise DataError(f"{source}: the {split} images have values from {low:g} to {high:g}; scale them to 0..1")


def _convert_one(array: np.ndarray, gray: bool, section: DataSection) -> np.ndarray:
    size = section.height_width or (array.shape[1], array.shape[2])
    shape = (len(array), *size, 1 if gray else 3)
    if array.dtype == np.uint8 and array.shape == shape and array.flags.c_contiguous:
        return array

    def blocks() -> Iterator[np.ndarray]:
        with ThreadPoolExecutor(workers()) as pool:
            for block in _chunks(array):
                block = _to_channels(_to_uint8(block, section.bits), gray)
                if block.shape[1:3] != size:
                    block = np.stack(list(pool.map(lambda image: resize(image, size, section.filter), block)))
                yield block

    cache.check_room(shape, mapped=isinstance(array, np.memmap))
    if not isinstance(array, np.memmap):
        out, start = np.empty(shape, dtype=np.uint8), 0
        for block in blocks():
            out[start : start + len(block)] = block
            start += len(block)
        return out
    entry = Path(array.filename or "").stem  # of the cache, which tells entries by what is in them
    key = cache.make_key("converted", entry, (size, section.filter, gray, section.bits))
    return cache.fetch_or_store(key, True, lambda: cache.store(key, shape, np.dtype(np.uint8), blocks()))[0]


def _chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(array), CHUNK):
        yield np.asarray(array[start : start + CHUNK])


def _to_uint8(block: np.ndarray, bits: int) -> np.ndarray:
    if block.dtype == np.uint8:
        return block
    if block.dtype.kind == "u":
        return scale_16_bit(block, bits)
    return np.rint(block.astype(np.float64) * 255).astype(np.uint8)


def _to_channels(block: np.ndarray, gray: bool) -> np.ndarray:
    if block.shape[3] == (1 if gray else 3):
        return block
    if not gray:
        return np.repeat(block, 3, axis=3)
    red, green, blue = np.moveaxis(block.astype(np.uint32), 3, 0)
    # The weights and the rounding of Pillow, so that a file and an array of the same image give the same pixels.
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)[..., None]
