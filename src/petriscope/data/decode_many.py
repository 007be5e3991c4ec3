"""Decode many image files in parallel into one cached array."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from petriscope.core.errors import DataError
from petriscope.core.progress import progress
from petriscope.core.recipe import DataSection
from petriscope.data import cache
from petriscope.data.contents import Content, Contents
from petriscope.data.decode import Channels, Unreadable, probe_file, read_image, workers
from petriscope.data.in_memory import AnyFile

CHUNK = 32  # images per task of a thread
WINDOW = 16  # tasks in memory at a time, per thread


class Known(Protocol):
    """What is known of the contents of files, as `petriscope.data.index.Recalled` has it."""

    @property
    def values(self) -> list[str]: ...

    def check_unchanged(self, names: Sequence[str]) -> None: ...


@dataclass(frozen=True)
class Decoded:
    """The readable images of a list of files.

    Args:
        pixels: uint8 [M, H, W, C]; mapped from disk or in memory.
        digests: uint8 [M, 16], a hash of each of them.
        sizes: height and width of each image in its file, int64 [M, 2].
        contents: a digest of the bytes of each file of the list.
        kept: int64 [K], the indices of the readable files in the list, which are also their rows in ``pixels``.
        warnings: what the user should know, one sentence each.
    """

    pixels: np.ndarray
    digests: np.ndarray
    sizes: np.ndarray
    contents: list[str]
    kept: np.ndarray
    warnings: list[str]


def decode_files(
    paths: Sequence[AnyFile], names: Sequence[str], section: DataSection, source: str, known: Known | None = None
) -> Decoded:
    """Decode many images to one shape, in parallel. A second call takes them from the cache.

    Args:
        paths: the files. The cache knows them by their contents.
        names: the name of each file in messages.
        section: size, filter, channels, bits, unreadable and memory.
        source: what the user named.
        known: what is known of the contents of files within others.

    Raises:
        DataError: an image is unreadable and ``section.unreadable`` is ``stop``, or none is readable.
        PetriscopeError: the disk of the cache is full.
    """
    options = (section.height_width, section.filter, section.channels, section.bits, section.unreadable)
    contents = known or cache.contents([path for path in paths if isinstance(path, Path)], source)
    key = cache.make_key("images and their sizes", tuple(zip(names, contents.values, strict=True)), options)
    pixels, about = cache.fetch_or_store(key, True, lambda: _decode_to_cache(key, paths, names, section, contents))
    digests = cache.row_digests(pixels)
    if not cache.choose_mapped(pixels.nbytes, section.memory, source):
        pixels = np.array(pixels)
    kept, sizes = np.array(about["kept"], dtype=np.int64), np.array(about["sizes"], dtype=np.int64).reshape(-1, 2)
    return Decoded(pixels, digests, sizes, contents.values, kept, list(about["warnings"]))


def _decode_to_cache(
    key: str, paths: Sequence[AnyFile], names: Sequence[str], section: DataSection, contents: Known
) -> None:
    warnings: list[str] = []
    bad: dict[int, str] = {}
    with ThreadPoolExecutor(workers()) as pool:
        size, channels = section.height_width, section.channels
        if size is None or channels == "auto":
            size, channels = _agree(pool, paths, section, warnings, bad)
        refuse_unreadable(bad, names, section, len(paths))
        depth = 1 if channels == "gray" else 3
        cache.check_room((len(paths), *size, depth), mapped=True)
        held, sizes = Contents(section.bits, section.channels == "gray"), [(0, 0)] * len(paths)

        def decode(start: int) -> tuple[np.ndarray, dict[int, str], dict[int, Content]]:
            stop = min(start + CHUNK, len(paths))
            block = np.zeros((stop - start, *size, depth), dtype=np.uint8)
            wrong: dict[int, str] = {}
            found: dict[int, Content] = {}
            for index in range(start, stop):
                if index in bad:
                    continue
                try:
                    block[index - start], found[index] = read_image(
                        paths[index], size, section.filter, channels, section.bits
                    )
                except Unreadable as error:
                    wrong[index] = str(error)
            return block, wrong, found

        about: dict[str, object] = {}

        def blocks() -> Iterator[np.ndarray]:
            span = CHUNK * WINDOW * workers()
            with progress("decoding", len(paths)) as bar:
                for first in range(0, len(paths), span):
                    starts = range(first, min(first + span, len(paths)), CHUNK)
                    for block, wrong, found in pool.map(decode, starts):
                        bad.update(wrong)
                        for index, content in found.items():
                            held.add(names[index], content)
                            sizes[index] = content.size
                        bar.advance(len(block))
                        yield block
            contents.check_unchanged(names)
            refuse_unreadable(bad, names, section, len(paths))
            if bad:
                warnings.append(f"{list_unreadable(bad, names)}; left out")
            warnings.extend(held.warnings())
            about.update(kept=[i for i in range(len(paths)) if i not in bad], sizes=sizes, warnings=warnings)

        cache.store(key, (len(paths), *size, depth), np.dtype(np.uint8), blocks(), about)


def _agree(
    pool: ThreadPoolExecutor, paths: Sequence[AnyFile], section: DataSection, warnings: list[str], bad: dict[int, str]
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


def refuse_unreadable(bad: dict[int, str], names: Sequence[str], section: DataSection, count: int) -> None:
    """Stop because of images that cannot be read, unless ``section.unreadable`` is ``skip`` and others are left.

    Args:
        bad: why each cannot be read, by its place in ``names``.
        count: of all images.

    Raises:
        DataError: the message names the first of them.
    """
    if not bad:
        return
    if section.unreadable == "stop":
        raise DataError(
            f"{list_unreadable(bad, names)}; repair or remove them, or leave them out with --set data.unreadable=skip"
        )
    if len(bad) == count:
        raise DataError(f"no image is left: {list_unreadable(bad, names)}")


def list_unreadable(bad: dict[int, str], names: Sequence[str]) -> str:
    """How many images cannot be read, and why the first of them."""
    shown = [f"{names[index]} ({bad[index]})" for index in sorted(bad)[:5]]
    more = f" and {len(bad) - 5:,} more" if len(bad) > 5 else ""
    return f"{len(bad):,} image{'s' if len(bad) > 1 else ''} cannot be read: {', '.join(shown)}{more}"
