"""Convert arrays of images to uint8 or uint16 [N, H, W, C] as the recipe asks."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from petriscope.core.channels import MOST, Names
from petriscope.core.errors import DataError
from petriscope.core.recipe import DataSection
from petriscope.data import cache
from petriscope.data.contents import Content, Contents, peak_of
from petriscope.data.decode import GRAYISH, resize, workers
from petriscope.data.imageset import ImageSet
from petriscope.data.levels import to_levels, too_bright
from petriscope.data.picked import Pick, choose_channels

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
    channels: Names = (),
) -> dict[str, ImageSet]:
    """Make image sets from arrays. The ids of the images are ``split/index``.

    Args:
        pixels: split -> images, as `convert` takes them.
        targets: split -> int64 [N].
        warnings: sentences for the user are added to it.
        groups: split -> strings [N].
        named: whether the classes have names in the source or in the recipe.
        channels: the names that the source gives its channels; empty: none.
    """
    ready, names = convert(pixels, section, source, warnings, channels)
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
            channels=names,
        )
        for split, array in ready.items()
    }


def conform(sets: dict[str, ImageSet], section: DataSection, source: str, warnings: list[str]) -> dict[str, ImageSet]:
    """Convert image sets to the size and channels that the recipe asks for."""
    ready, names = convert({split: part.array for split, part in sets.items()}, section, source, warnings)
    return {
        split: replace(part, pixels=ready[split], sizes=_sizes(part.array), channels=names)
        for split, part in sets.items()
    }


def _sizes(pixels: np.ndarray) -> np.ndarray:
    """Height and width of each image, int [N, 2]."""
    return np.broadcast_to(np.array(pixels.shape[1:3]), (len(pixels), 2))


def convert(
    pixels: dict[str, np.ndarray], section: DataSection, source: str, warnings: list[str], channels: Names = ()
) -> tuple[dict[str, np.ndarray], Names]:
    """Convert the images of all splits to one shape, one choice of channels, and uint8 or uint16.

    Args:
        pixels: split -> [N, H, W] or [N, H, W, 1 to 16], none of them empty: uint8, uint16 (scaled by ``section.bits``), floats
            in 0..1; or any numbers in ``section.range``. Mapped arrays stay mapped.
        channels: the names that the source gives them; empty: none.

    Returns:
        split -> uint8, or uint16 for a ``section.depth`` of 16, [N, H, W, C], with the same H, W and C, in C order; and the
        names of the channels.

    Raises:
        DataError: another type or shape, values out of range, shapes that differ between splits, or channels that are not
            those of the recipe.
    """
    for split, array in pixels.items():
        _check_form(array, f"the {split} images of {source}", section)
    pixels = {split: array[..., None] if array.ndim == 3 else array for split, array in pixels.items()}
    counts = {array.shape[3] for array in pixels.values()}
    picks = {count: choose_channels(count, channels, section.channels, source) for count in sorted(counts)}
    if len(counts) > 1 and section.channels == "auto" and counts == {1, 3}:  # gray in one split, and RGB in another
        picks = {count: choose_channels(count, channels, "rgb", source) for count in sorted(counts)}
    if len({pick.names for pick in picks.values()}) > 1:
        listed = ", ".join(f"{split} {array.shape[3]}" for split, array in pixels.items())
        raise DataError(f"{source}: the images differ in channels between splits ({listed}); save them with the same")
    warnings += [f"{source}: {pick.left_out}" for pick in picks.values() if pick.left_out]
    sizes = {split: array.shape[1:3] for split, array in pixels.items()}
    if section.size is None and len(set(sizes.values())) > 1:
        listed = ", ".join(f"{split} {height} x {width}" for split, (height, width) in sizes.items())
        raise DataError(
            f"{source}: the images differ in size between splits ({listed}); choose one with --set data.size=N"
        )
    scaled = any(_scaled(array, section) for array in pixels.values())
    held = Contents(section.bits, depth=None if scaled else section.depth)
    for split, array in pixels.items():
        _check_values(array, split, source, section, held)
        _note_colors(array, split, picks[array.shape[3]], section, held)
    warnings += held.warnings()
    if section.depth == 8 and scaled and any(array.dtype != np.uint8 for array in pixels.values()):
        warnings.append(f"{source}: values are brought to 8 bits (256 levels); --set data.depth=16 keeps 16")
    names = next(iter(picks.values())).names
    return {split: _convert_one(array, picks[array.shape[3]], section) for split, array in pixels.items()}, names


def _scaled(array: np.ndarray, section: DataSection) -> bool:
    """Whether values are brought to levels, rather than taken as they are stored."""
    return section.range is not None or array.dtype.kind == "f"


def _check_form(array: np.ndarray, what: str, section: DataSection) -> None:
    if array.ndim not in (3, 4) or 0 in array.shape[1:]:
        raise DataError(f"{what} have shape {list(array.shape)}; images are [N, H, W] or [N, H, W, C]")
    named = isinstance(section.channels, tuple)
    if array.ndim == 4 and array.shape[3] not in (1, 3):
        first = array.shape[1] in (1, 3) or array.shape[3] > MOST >= array.shape[1]
        if array.shape[3] > MOST or (first and not named):
            hint = "; channels come last" if first else ""
            more = ", or name them with --set data.channels=[...]" if first and array.shape[3] <= MOST else ""
            raise DataError(f"{what} have shape {list(array.shape)}; images have 1 to {MOST} channels{hint}{more}")
    if section.range is not None and array.dtype.kind in "iuf":
        return
    if array.dtype.kind == "b":
        raise DataError(f"{what} have type bool; save them as uint8, with 255 for True")
    if array.dtype.newbyteorder("=") not in (np.uint8, np.uint16) and array.dtype.kind != "f":
        raise DataError(
            f"{what} have type {array.dtype}; save them as uint8, uint16, or floats in 0 to 1, or say which values are black "
            "and white, such as --set data.range=[0,4095]"
        )


def _check_values(array: np.ndarray, split: str, source: str, section: DataSection, held: Contents) -> None:
    """Check the values of floats and 16-bit integers, and note how bright some of the images are."""
    _check_range(array, split, source, section, held)
    scaled, bits = _scaled(array, section), 8 * array.dtype.itemsize
    for index in np.unique(np.linspace(0, len(array) - 1, SOME).astype(int)):
        image = np.asarray(array[index])
        peak = peak_of(to_levels(image, section.bits, 8, section.range) if scaled else image)
        held.add(f"{split}/{index}", Content(peak, 8 if scaled else bits))


def _note_colors(array: np.ndarray, split: str, pick: Pick, section: DataSection, held: Contents) -> None:
    """Note which images lose their colors, although nobody asked for gray."""
    if pick.luma is None or section.asks_for_gray:
        return
    places = list(pick.luma)
    blocks = (to_levels(block[..., places], section.bits, 8, section.range) for block in _chunks(array))
    spans = (int(np.ptp(image, axis=2).max(initial=0)) for block in blocks for image in block)
    for index, span in enumerate(spans):
        if span > GRAYISH:
            held.note(f"{split}/{index}", {"color": len(places)})


def _check_range(array: np.ndarray, split: str, source: str, section: DataSection, held: Contents) -> None:
    if array.dtype == np.uint8 and section.range is None:
        return
    if not _scaled(array, section):
        for index, image in enumerate(image for block in _chunks(array) for image in block):
            try:
                if too_bright(image, held.bits):
                    held.note(f"{split}/{index}", {"bright": 1})
            except ValueError as error:
                raise DataError(f"{source}: {split} image {index}: {error}") from None
        return
    low, high, start = np.inf, -np.inf, 0
    span = section.range
    for block in _chunks(array):
        broken = np.flatnonzero(~np.isfinite(block).all(axis=(1, 2, 3)))
        if len(broken):
            raise DataError(
                f"{source}: {split} image {start + broken[0]} has NaN or infinite values; repair or remove it"
            )
        if span is not None:
            for place in np.flatnonzero(((block < span[0]) | (block > span[1])).any(axis=(1, 2, 3))).tolist():
                held.note(f"{split}/{start + place}", {"clipped": 1})
        low, high, start = min(low, float(block.min())), max(high, float(block.max())), start + len(block)
    if span is None and (low < 0 or high > 1):
        raise DataError(
            f"{source}: the {split} images have values from {low:g} to {high:g}; scale them to 0..1, or say which values are "
            f"black and white, such as --set data.range=[{low:g},{high:g}]"
        )


def _convert_one(array: np.ndarray, pick: Pick, section: DataSection) -> np.ndarray:
    size = section.height_width or (array.shape[1], array.shape[2])
    shape = (len(array), *size, len(pick.names))
    dtype = np.dtype(np.uint8 if section.depth == 8 else np.uint16)
    same = array.dtype == dtype and (section.depth == 8 or section.bits == 16) and not _scaled(array, section)
    if same and array.shape == shape and pick.as_stored and array.flags.c_contiguous:
        return array

    def blocks() -> Iterator[np.ndarray]:
        with ThreadPoolExecutor(workers()) as pool:
            for block in _chunks(array):
                block = pick(to_levels(block, section.bits, section.depth, section.range))
                if block.shape[1:3] != size:
                    block = np.stack(list(pool.map(lambda image: resize(image, size, section.filter), block)))
                yield block

    cache.check_room(shape, mapped=isinstance(array, np.memmap), bits=section.depth)
    if not isinstance(array, np.memmap):
        out, start = np.empty(shape, dtype=dtype), 0
        for block in blocks():
            out[start : start + len(block)] = block
            start += len(block)
        return out
    entry = Path(array.filename or "").stem  # of the cache, which tells entries by what is in them
    how = (size, section.filter, pick, section.bits, section.depth, section.range)
    key = cache.make_key("converted", entry, how)
    return cache.fetch_or_store(key, True, lambda: cache.store(key, shape, dtype, blocks()))[0]


def _chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(array), CHUNK):
        yield np.asarray(array[start : start + CHUNK])
