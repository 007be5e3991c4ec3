"""Decode image files and cut out pieces of them, in parallel, into one cached array."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from petriscope.core.progress import progress
from petriscope.core.recipe import DataSection
from petriscope.data import cache
from petriscope.data.background import background_colors
from petriscope.data.contents import Content, Contents
from petriscope.data.decode import Channels, Form, Unreadable, read_image, resize, workers
from petriscope.data.decode_many import Decoded, form_of, names_of, refuse_unreadable, say_unreadable
from petriscope.data.index import Recalled

WINDOW = 4  # images in memory at a time, per thread


def decode_crops(
    paths: Sequence[Path],
    names: Sequence[str],
    windows: Sequence[np.ndarray],
    gray: bool,
    section: DataSection,
    source: str,
) -> Decoded:
    """Cut pieces out of many images and bring them to one shape. A second call takes them from the cache.

    Pieces are cut from the upright image in its full size, then resized. What of a piece lies beyond the image has the color of
    the image's background, as where images are made smaller: an object at the border then ends as one beside empty ground does,
    and repeated pixels of the border would draw streaks that a network could learn.

    Args:
        paths: the files. The cache knows them by their contents.
        names: the name of each file in messages.
        windows: of each file, top, left, height and width of each piece, int64 [P, 4]; they may reach beyond the image.
        gray: whether all images are gray.
        section: size, filter, channels, bits, depth, range, unreadable and memory. Without a size, it is the median of that of
            the pieces.

    Returns:
        a row per piece, in the order of the files. ``sizes`` has the size of the pieces before they were resized. ``kept`` lacks
        those of unreadable files.

    Raises:
        DataError: an image is unreadable and ``section.unreadable`` is ``stop``, or none is readable.
        PetriscopeError: the disk of the cache is full.
    """
    every = np.concatenate(windows)
    size = section.height_width
    notes = []
    if size is None:
        height, width = np.median(every[:, 2:], axis=0).astype(int).tolist()
        size = (max(height, 1), max(width, 1))
        if len({*map(tuple, every[:, 2:].tolist())}) > 1:
            notes.append(
                f"the crops have many sizes; all were resized to the median, {size[0]} x {size[1]} (height x width); choose "
                "another with --set data.size=N"
            )
    channels: Channels = section.channels
    if channels == "auto":
        channels = "gray" if gray else "rgb"
    contents = cache.contents(paths, source)
    form = form_of(section, channels)
    options = (size, form, section.unreadable, section.asks_for_gray)  # which decides what is said
    known = tuple(zip(names, contents.values, strict=True))
    shapes = tuple(part.tobytes() for part in windows)
    key = cache.make_key("crops", known, shapes, options)
    pixels, about = cache.fetch_or_store(
        key, True, lambda: _cut_to_cache(key, paths, names, windows, size, form, section, contents)
    )
    digests = cache.row_digests(pixels)
    if not cache.choose_mapped(pixels.nbytes, section.memory, source):
        pixels = np.array(pixels)
    lost = set(about["lost"])
    left = say_unreadable(dict(about.get("bad", ())), names)
    home = np.repeat(np.arange(len(windows)), [len(part) for part in windows])
    kept = np.flatnonzero([index not in lost for index in home.tolist()])
    warnings = [*notes, *left, *about["warnings"]]
    return Decoded(pixels, digests, every[:, 2:], contents.values, kept, warnings, names_of(channels))


def cut(image: np.ndarray, windows: np.ndarray) -> Iterator[np.ndarray]:
    """The pieces of an image, uint8 or uint16 [H, W, C], in their own sizes; what lies beyond it has the color of its
    background."""
    ground = None
    for top, left, rows, columns in windows.tolist():
        inner = image[max(top, 0) : max(top + rows, 0), max(left, 0) : max(left + columns, 0)]
        if inner.shape[:2] == (rows, columns):
            yield inner
            continue
        if ground is None:
            ground = background_colors(image[None])[0]
        piece = np.empty((rows, columns, image.shape[2]), dtype=image.dtype)
        piece[:] = ground
        down, across = max(-top, 0), max(-left, 0)
        piece[down : down + inner.shape[0], across : across + inner.shape[1]] = inner
        yield piece


def _cut_to_cache(
    key: str,
    paths: Sequence[Path],
    names: Sequence[str],
    windows: Sequence[np.ndarray],
    size: tuple[int, int],
    form: Form,
    section: DataSection,
    contents: Recalled,
) -> None:
    shape = (sum(map(len, windows)), *size, form.count)
    cache.check_room(shape, mapped=True, bits=form.depth)
    depth = form.depth if form.range is None else None
    held, bad = Contents(section.bits, section.asks_for_gray, depth), dict[int, str]()
    about: dict[str, object] = {}

    def decode(index: int) -> tuple[np.ndarray, Content | None, str]:
        block = np.zeros((len(windows[index]), *shape[1:]), dtype=form.dtype)
        try:
            image, content = read_image(paths[index], None, form)
        except Unreadable as error:
            return block, None, str(error)
        for row, piece in enumerate(cut(image, windows[index])):
            block[row] = resize(piece, size, section.filter)
        return block, content, ""

    def blocks() -> Iterator[np.ndarray]:
        span = WINDOW * workers()
        with ThreadPoolExecutor(workers()) as pool, progress("cutting out objects", len(paths)) as bar:
            for first in range(0, len(paths), span):
                some = range(first, min(first + span, len(paths)))
                for index, (block, content, wrong) in zip(some, pool.map(decode, some), strict=True):
                    if content is None:
                        bad[index] = wrong
                    else:
                        held.add(names[index], content)
                    bar.advance()
                    yield block
        contents.check_unchanged(names)
        refuse_unreadable(bad, names, section, len(paths))
        about.update(lost=[*bad], bad=list(bad.items()), warnings=held.warnings())

    cache.store(key, shape, form.dtype, blocks(), about)
