"""Decode many image files in parallel into one cached array."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from petriscope.core.channels import Names, in_words
from petriscope.core.errors import DataError, listed
from petriscope.core.progress import progress
from petriscope.core.recipe import DataSection
from petriscope.data import cache, index
from petriscope.data.contents import Content, Contents
from petriscope.data.decode import Channels, Form, Unreadable, begins_plainly, probe_file, read_image, workers
from petriscope.data.in_memory import AnyFile, InMemory, Page
from petriscope.data.index import digest_of
from petriscope.data.omissions import LeftOut
from petriscope.data.streamed import Streamed
from petriscope.data.tiles import padded

CHUNK = 32  # images per task of a thread
MOST_BYTES = 1 << 22  # of a file that is held in memory while it is decoded
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
        pixels: uint8 or uint16 [M, H, W, C]; mapped from disk, in memory or in shards. With ``data.tiles``, images have their
            own sizes, in the top left corners of their rows; the rest is 0.
        digests: uint8 [M, 16], a hash of each of them, without what was added.
        sizes: height and width of each image in its file, int64 [M, 2].
        contents: a digest of the bytes of each file of the list.
        kept: int64 [K], the indices of the readable files in the list, which are also their rows in ``pixels``.
        warnings: what the user should know, one sentence each.
        channels: the names of the channels; empty: they have none, as gray and RGB.
        padded: whether images have their own sizes.
        micrometers: height and width of a pixel of each file, float64 [M, 2]; NaN: it does not say.
    """

    pixels: np.ndarray | Streamed
    digests: np.ndarray
    sizes: np.ndarray
    contents: list[str]
    kept: np.ndarray
    warnings: list[str]
    channels: Names = ()
    padded: bool = False
    micrometers: np.ndarray | None = None


def decode_files(
    paths: Sequence[AnyFile | str], names: Sequence[str], section: DataSection, source: str, known: Known | None = None
) -> Decoded:
    """Decode many images to one shape, in parallel. A second call takes them from the cache.

    Args:
        paths: the files. The cache knows them by their contents.
        names: the name of each file in messages.
        section: size, filter, channels, bits, depth, range, unreadable and memory.
        source: what the user named.
        known: what is known of the contents of files within others.

    Raises:
        DataError: an image is unreadable and ``section.unreadable`` is ``stop``, or none is readable.
        PetriscopeError: the disk of the cache is full.
    """
    contents = known or _known_or_decoded(paths, names, section, source)
    key = _key(names, contents.values, section)
    pixels, about = cache.fetch_or_store(key, True, lambda: _decode_to_cache(key, paths, names, section, contents))
    cache.note(_beginning(names, [value for value in contents.values[:CHUNK] if value], section))
    bad = dict(about["bad"])
    kept = np.array([row for row in range(len(paths)) if row not in bad] if bad else range(len(paths)), dtype=np.int64)
    sizes = np.frombuffer(bytes.fromhex(about["sizes"]), dtype="<i4").astype(np.int64).reshape(-1, 2)
    digests = np.frombuffer(bytes.fromhex(about["digests"]), dtype=np.uint8).reshape(-1, 16)
    if not cache.choose_mapped(pixels.nbytes, section.memory, source):
        pixels = np.array(pixels)
    micrometers = np.array([each or (np.nan, np.nan) for each in about["micrometers"]]).reshape(-1, 2)
    rest = (tuple(about["channels"]), section.tiles is not None, micrometers)
    warnings = [*say_unreadable(bad, names), *about["warnings"]]
    return Decoded(pixels, digests, sizes, contents.values, kept, warnings, *rest)


class PerPage:
    """What is known of the contents of files, for each of their pages."""

    def __init__(self, of: Known, files: Sequence[AnyFile | str], pages: Sequence[AnyFile | str]) -> None:
        place = {file: number for number, file in enumerate(files)}
        self._of = of
        self._places = [place[page.file if isinstance(page, Page) else page] for page in pages]
        self.values = [of.values[number] for number in self._places]

    def check_unchanged(self, names: Sequence[str]) -> None:
        first = dict(reversed([*zip(self._places, names, strict=True)]))
        self._of.check_unchanged([first[number] for number in range(len(first))])


def known_files(paths: Sequence[AnyFile | str], source: str) -> Known:
    """What is known of the contents of files, or of the files of pages, on the disk."""
    files = list(dict.fromkeys(path.file if isinstance(path, Page) else path for path in paths))
    contents = cache.contents([file for file in files if isinstance(file, Path | str)], source)
    return contents if len(files) == len(paths) else PerPage(contents, files, paths)


def _key(names: Sequence[str], contents: Sequence[str], section: DataSection) -> str:
    form, own = form_of(section, section.channels), section.tiles is not None
    options = (section.height_width, form, section.unreadable, own, section.asks_for_gray)  # which decides what is said
    return cache.make_key(
        "images, their sizes, channels and digests, in brief",
        len(names),
        "\0".join(names),
        "\0".join(contents),
        options,
    )


def _known_or_decoded(paths: Sequence[AnyFile | str], names: Sequence[str], section: DataSection, source: str) -> Known:
    """`known_files`. Where most files were never read before, each is decoded from the bytes that are read for that, and the
    images are stored in the cache: to open and read small files twice takes a fifth of the time of decoding them."""
    files = [path for path in paths if isinstance(path, Path | str)]
    if len(files) < len(paths) or len({*files}) < len(files):
        return known_files(paths, source)
    looked = cache.look(files, source)
    some = [(path, status) for path, status in zip(files[:CHUNK], looked.statuses, strict=False) if status is not None]
    large = sum(status[0] for _, status in some) > MOST_BYTES  # so that decoding takes much longer than reading
    if 2 * looked.new <= len(files) or large or index.all_again():
        return cache.contents(files, source, looked)
    with suppress(OSError):  # where one of the first cannot be read, that is said when it is decoded
        first = [index.content_digest(Path(path)) for path, _ in some]
        if cache.is_noted(_beginning(names, first, section)):
            return cache.contents(files, source, looked)
    draft = cache.make_key("while reading", str(Path(source).absolute()), *map(repr, (names, section)))
    waited = list[bool]()
    with cache.lock(draft, busy=lambda: waited.append(True)), ThreadPoolExecutor(workers()) as pool:
        found = None if waited else _assumed(files, section)
        if found is None:  # another process has just done it; or files differ, so that all headers are looked at first
            return known_files(paths, source)
        read = Bytes(looked)
        try:
            _store(pool, draft, files, names, section, read, *found, {}, [], section.height_width is None)
        except _DiffersError:
            return cache.contents(files, source, looked)
        contents = looked.complete([read.values[place] for place in looked.missing])
        cache.rename(draft, _key(names, contents.values, section))
        return contents


def _beginning(names: Sequence[str], contents: Sequence[str], section: DataSection) -> str:
    """What is noted of images that were decoded, so that files which were moved are looked for by their contents before they are
    decoded again."""
    return _key([str(len(names)), *names[:CHUNK]], contents, section)


class Bytes:
    """What is known of the contents of files while they are read.

    Args:
        looked: which must be read.
    """

    def __init__(self, looked: index.Looked) -> None:
        self.values = list(looked.values)
        self._paths, self._statuses = looked.paths, looked.statuses
        self.check_unchanged = index.Recalled(self.values, looked.statuses, looked.paths).check_unchanged

    def read(self, place: int) -> AnyFile:
        """Read a file and note a digest of it; as it can be decoded."""
        path, status = self._paths[place], self._statuses[place]
        if status is None:  # what is wrong with it is said where it is opened as an image
            return Path(path)
        try:
            if status[0] > MOST_BYTES:
                self.values[place] = index.content_digest(Path(path))
                return Path(path)
            content = _read(path, status[0])
        except OSError:
            return Path(path)
        self.values[place] = index.digest_of(content).hex()
        return InMemory(str(path), content) if begins_plainly(content) else Path(path)


def _read(path: Path | str, size: int) -> bytes:
    """The content of a small file, in a third of the time that Python's own files take."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        parts = [os.read(handle, size + 1)]
        while parts[-1] and sum(map(len, parts)) != size:
            parts.append(os.read(handle, size + 1))
    finally:
        os.close(handle)
    return b"".join(parts)


class _DiffersError(Exception):
    """An image has another size than the first ones."""


def _decode_to_cache(
    key: str, paths: Sequence[AnyFile | str], names: Sequence[str], section: DataSection, contents: Known
) -> None:
    warnings: list[str] = []
    bad: dict[int, str] = {}
    with ThreadPoolExecutor(workers()) as pool:
        size, channels = section.height_width, section.channels
        if size is None or channels == "auto":
            # Most sets have images of one size. To look at all headers first takes a fifth of the time of decoding small files.
            if (assumed := _assumed(paths, section)) is not None:
                with suppress(_DiffersError):
                    _store(pool, key, paths, names, section, contents, *assumed, bad, warnings, size is None)
                    return
                bad.clear()
            size, channels = _agree(pool, paths, section, warnings, bad)
        refuse_unreadable(bad, names, section, len(paths))
        _store(pool, key, paths, names, section, contents, size, channels, bad, warnings)


def _assumed(paths: Sequence[AnyFile | str], section: DataSection) -> tuple[tuple[int, int], Channels] | None:
    """The size and the channels of all images, if they are given, or the first ones have them; None where all headers must be
    looked at."""
    if (size := section.height_width) is not None and section.channels != "auto":
        return size, section.channels
    if (size := _first_ones(paths, section)) is None:
        return None
    return size, "rgb" if section.channels == "auto" else section.channels


def _first_ones(paths: Sequence[AnyFile | str], section: DataSection) -> tuple[int, int] | None:
    """The size of all images if the first ones have one size, or it is given, and the first is in color or colors are asked for;
    else None, also where channels are no colors."""
    form = form_of(section, section.channels)
    headers = [probe_file(_as_file(path), form)[0] for path in paths[:CHUNK]]
    found = [header for header in headers if header is not None]
    if (
        not found
        or section.channels == "gray"
        or (
            section.channels == "auto"
            and (all(header.gray for header in found) or any(header.names for header in found))
        )
    ):
        return None
    sizes = {section.height_width or header[:2] for header in found}
    return sizes.pop() if len(sizes) == 1 else None


def _store(
    pool: ThreadPoolExecutor,
    key: str,
    paths: Sequence[AnyFile | str],
    names: Sequence[str],
    section: DataSection,
    contents: Known,
    size: tuple[int, int],
    channels: Channels,
    bad: dict[int, str],
    warnings: list[str],
    alike: bool = False,
) -> None:
    """Decode images into the cache.

    Args:
        contents: `Bytes` read the files that are decoded.
        bad: why each image that is known to be unreadable is; more are added.
        warnings: what the user should know is added.
        alike: stop at an image that has another size.

    Raises:
        _DiffersError: there is one; nothing was stored.
    """
    form, own = form_of(section, channels), section.tiles is not None
    shape = (len(paths), *size, form.count)
    cache.check_room(shape, mapped=True, bits=form.depth)
    depth = form.depth if form.range is None else None
    held, sizes = Contents(section.bits, section.asks_for_gray, depth), [(0, 0)] * len(paths)
    digests = [bytes(16)] * len(paths)
    micrometers: list[tuple[float, float] | None] = [None] * len(paths)

    def decode(start: int) -> tuple[np.ndarray, dict[int, str], dict[int, Content]]:
        stop = min(start + CHUNK, len(paths))
        block = np.zeros((stop - start, *shape[1:]), dtype=form.dtype)
        wrong: dict[int, str] = {}
        found: dict[int, Content] = {}
        for place in range(start, stop):
            if place in bad:
                continue
            try:
                file = contents.read(place) if isinstance(contents, Bytes) else _as_file(paths[place])
                image, content = read_image(file, None if own else size, form)
            except Unreadable as error:
                wrong[place] = str(error)
                continue
            if alike and content.size != size:
                raise _DiffersError
            found[place] = content
            block[place - start] = padded(image, size) if own else image
            digests[place] = digest_of(np.ascontiguousarray(image).data)
        return block, wrong, found

    about: dict[str, object] = {}

    def blocks() -> Iterator[np.ndarray]:
        span = CHUNK * WINDOW * workers()
        with progress("decoding", len(paths)) as bar:
            for first in range(0, len(paths), span):
                starts = range(first, min(first + span, len(paths)), CHUNK)
                for block, wrong, found in pool.map(decode, starts):
                    bad.update(wrong)
                    for place, content in found.items():
                        held.add(names[place], content)
                        sizes[place], micrometers[place] = content.size, content.micrometers
                    bar.advance(len(block))
                    yield block
        contents.check_unchanged(names)
        refuse_unreadable(bad, names, section, len(paths))
        warnings.extend(held.warnings())
        about.update(sizes=np.array(sizes, dtype="<i4").tobytes().hex(), bad=list(bad.items()), warnings=warnings)
        about.update(digests=b"".join(digests).hex(), channels=names_of(channels))
        about.update(micrometers=micrometers if any(micrometers) else [])

    cache.store(key, shape, form.dtype, blocks(), about)


def _as_file(path: AnyFile | str) -> AnyFile:
    """A path as it can be opened; of many files, paths are texts, which take less time and memory."""
    return Path(path) if isinstance(path, str) else path


def form_of(section: DataSection, channels: Channels) -> Form:
    """What image files become, with the channels that were chosen."""
    return Form(section.filter, channels, section.bits, section.depth, section.range, section.pages, section.projection)


def names_of(channels: Channels) -> Names:
    return channels if isinstance(channels, tuple) else ()


def _agree(
    pool: ThreadPoolExecutor,
    paths: Sequence[AnyFile | str],
    section: DataSection,
    warnings: list[str],
    bad: dict[int, str],
) -> tuple[tuple[int, int], Channels]:
    """Choose one size and number of channels for all images from the headers of the files."""
    sizes: Counter[tuple[int, int]] = Counter()
    gray = True
    named: dict[Names, AnyFile] = {}  # the first file with these channels
    form = form_of(section, section.channels)
    for place, (header, reason) in enumerate(pool.map(lambda path: probe_file(_as_file(path), form), paths)):
        if header is None:
            bad[place] = reason
            continue
        sizes[header[:2]] += 1
        gray = gray and header.gray
        named.setdefault(header.names, _as_file(paths[place]))
    size = section.height_width
    if section.tiles is not None and sizes:
        size = (max(height for height, _ in sizes), max(width for _, width in sizes))
        if len(sizes) > 1:
            least, most = (function(sizes, key=lambda each: each[0] * each[1]) for function in (min, max))
            warnings.append(
                f"the images have {len(sizes):,} sizes and keep them, from {least[0]} x {least[1]} to {most[0]} x {most[1]} "
                f"(height x width); each takes the memory of {size[0]} x {size[1]}"
            )
    elif size is None and sizes:
        size = max(sizes, key=lambda item: (sizes[item], item))
        if len(sizes) > 1:
            warnings.append(
                f"the images have {len(sizes):,} sizes; all were resized to the most common one, "
                f"{size[0]} x {size[1]} (height x width, {sizes[size]:,} of {sum(sizes.values()):,}); "
                "choose another with --set data.size=N; images with masks keep their sizes with --set data.tiles=N"
            )
    channels: Channels = section.channels
    if channels == "auto":
        channels = "gray" if gray and sizes else "rgb"
        if any(named):
            channels = one_of(named)
    return size or (1, 1), channels


def one_of(named: Mapping[Names, AnyFile]) -> Names:
    """The channels that all files have.

    Raises:
        DataError: some have others.
    """
    if len(named) > 1:
        (one, first), (other, second) = list(named.items())[:2]
        raise DataError(
            f"the images differ in channels: {first} has {in_words(one) if one else 'gray or RGB'}, and {second} "
            f"{in_words(other) if other else 'gray or RGB'}; choose some that all have with data.channels"
        )
    return next(iter(named))


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


def say_unreadable(bad: dict[int, str], names: Sequence[str]) -> list[str]:
    """The warning that images are left out since they cannot be read, with how many for each reason; none if there are none."""
    if not bad:
        return []
    left_out = LeftOut()
    for place in sorted(bad):
        left_out.add(f"image{{s}} that cannot be read: {bad[place]}", names[place])
    return [left_out.sentence(f"{list_unreadable(bad, names)}; left out")]


def list_unreadable(bad: dict[int, str], names: Sequence[str]) -> str:
    """How many images cannot be read, and why the first of them."""
    each = [f"{names[index]} ({bad[index]})" for index in sorted(bad)]
    return f"{len(bad):,} image{'s' if len(bad) > 1 else ''} cannot be read: {listed(each)}"
