"""Any number of images, listed on the disk and read one after the other, so that memory does not grow with their number.

A source is listed in units: an image file, a tar file with images, which is read from its beginning to its end, or a row group
of a Parquet file with the bytes of images. Units are neither unpacked nor copied.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from petriscope.core.errors import DataError, PetriscopeError, RequestError
from petriscope.core.files import atomic, parsing, reason
from petriscope.core.progress import progress
from petriscope.data.decode import MAX_BYTES, SUFFIXES, pages_of
from petriscope.data.in_memory import AnyFile, InMemory, Within
from petriscope.data.omissions import LeftOut
from petriscope.data.planes import Pages
from petriscope.data.sources import parquet_images, remote
from petriscope.data.sources.holders import Kind, Source
from petriscope.data.sources.packed import Place as Member
from petriscope.data.sources.packed import members, unpacked
from petriscope.data.walk import suffix_of

BLOCK = 256  # images that are read at a time, at most
BLOCK_BYTES = 1 << 26  # of them, as far as they are read before they are decoded
FETCHES = 16  # image files at an address that are read at a time
LISTED = 1 << 14  # units in memory at a time
NO_FOLDERS = (".zip", ".npz", ".h5", ".hdf5", ".csv")  # what is not read in parts


class Unit(NamedTuple):
    """What is read as one.

    Args:
        place: the number of its source.
        path: of its file, in bytes, since names of files need not be text.
        size: of the file in bytes; -1: not known.
        part: the row group of a Parquet file; -1 for others.
        images: in it; 0 for a tar file, whose images are not counted before they are read.
        stamp: changes when the file does; empty: not known.
        end: the images of all units up to this one; bytes, if they are tar files.
    """

    place: int
    kind: Kind
    path: bytes
    size: int
    part: int
    images: int
    stamp: str
    end: int


@dataclass(frozen=True)
class Listing:
    """What was listed.

    Args:
        units: their number.
        total: `Unit.end` of the last one.
        images: their number; None: not known before they are read.
        notes: what was left out, a sentence each.
    """

    units: int
    total: int
    images: int | None
    notes: tuple[str, ...]


def write_listing(path: Path, sources: Sequence[Source], column: str | None = None) -> Listing:
    """List the images of sources, and write the list, atomically. In a folder with image files, these are listed alone; else its
    tar files, else its Parquet files.

    Args:
        column: of the images in Parquet files; None: it is found.

    Raises:
        RequestError: a source has no images.
        DataError, PetriscopeError: it cannot be listed, or a Parquet file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    notes: list[str] = []
    waiting: list[tuple[Any, ...]] = []
    count = total = 0
    kinds: set[Kind] = set()
    with (
        atomic(path) as temporary,
        pq.ParquetWriter(temporary, _schema()) as writer,
        progress("listing", 0, "files") as bar,
    ):

        def write() -> None:
            arrays = [list(column) for column in zip(*waiting, strict=True)] or [[]] * len(Unit._fields)
            writer.write_table(pa.table(arrays, schema=_schema()))
            waiting.clear()

        for number, source in enumerate(sources):
            for kind, file, size, part, images, stamp in _units_of(source, notes, column):
                kinds.add(kind)
                total += size if kind == "tar" else images
                waiting.append((number, kind, file, size, part, images, stamp, total))
                count += 1
                bar.advance()
                if len(waiting) == LISTED:
                    write()
        if "tar" in kinds and len(kinds) > 1:
            raise RequestError(
                "tar files, whose images are not counted before they are read, and other images are predicted by themselves; "
                "name them one after the other, each with an --out of its own"
            )
        if not total:
            raise RequestError(f"no images in {', '.join(source.name for source in sources)}")
        write()
    return Listing(count, total, None if "tar" in kinds else total, tuple(notes))


def _schema() -> Any:
    import pyarrow as pa

    text, number = pa.string(), pa.int64()
    kinds = (pa.int32(), text, pa.binary(), number, number, number, text, number)
    return pa.schema(list(zip(Unit._fields, kinds, strict=True)))


def _units_of(source: Source, notes: list[str], column: str | None) -> Iterator[tuple[Kind, bytes, int, int, int, str]]:
    if source.name.lower().endswith(NO_FOLDERS) and not source.is_folder:
        raise RequestError(
            f"{source.name}: with --shards, images are read from folders, tar files, Parquet files with the bytes of images, and "
            "addresses of these; unpack it, or pack the images as tar"
        )
    left_out, some = LeftOut(), False
    for holder in source.chosen(left_out):
        some = True
        kind, path = holder.kind, holder.path
        if kind == "image":
            yield kind, path, holder.size, -1, 1, ""
            continue
        with remote.reading(source.name, source.shown(path)):
            size, stamp = source.look(path)
        if kind == "tar":
            yield kind, path, size, -1, 0, stamp
            continue
        for part, rows in enumerate(_row_groups(source, path, column)):
            yield kind, path, size, part, rows, stamp
    notes += left_out.sentences(source.name)
    if not some:
        raise RequestError(". ".join([f"no images in {source.name}", *notes]))


def _row_groups(source: Source, path: bytes, column: str | None) -> list[int]:
    """The rows of each group of a Parquet file with images."""
    with _table(source, path) as file:
        parquet_images.image_in(file.schema_arrow, source.shown(path), column)
        return [file.metadata.row_group(part).num_rows for part in range(file.metadata.num_row_groups)]


class _table:
    """A Parquet file of a source, opened."""

    def __init__(self, source: Source, path: bytes) -> None:
        self.source, self.path = source, path

    def __enter__(self) -> Any:
        import pyarrow.parquet as pq

        name = self.source.shown(self.path)
        with parsing(name, parquet_images.REMEDY, DataError):
            self.handle = self.source.open(self.path)
            self.file = pq.ParquetFile(self.handle, buffer_size=parquet_images.BUFFER_BYTES)
        return self.file

    def __exit__(self, *error: object) -> None:
        with suppress(Exception):
            self.file.close()
        self.handle.close()


# ------------------------------------------------------------------------------------------------------------ reading


def split_evenly(path: Path, listing: Listing, shards: int) -> list[int]:
    """Where each shard begins in a list of units: ``shards + 1`` numbers, ascending. Shards have about as many images, or bytes
    of tar files."""
    starts = [0]
    for number, unit in enumerate(_read(path, 0, listing.units)):
        crosses = unit.end * shards > len(starts) * listing.total
        needed = listing.units - number <= shards - len(starts)  # or else a shard would be empty
        if number > starts[-1] and len(starts) < shards and (crosses or needed):
            starts.append(number)
    return [*starts, listing.units]


def _read(path: Path, start: int, stop: int) -> Iterator[Unit]:
    import pyarrow.parquet as pq

    with parsing(path, "remove the folder, and begin again"), pq.ParquetFile(path) as file:
        place = 0
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if place < stop and place + rows > start:
                for batch in file.iter_batches(LISTED, row_groups=[group]):
                    columns = (column.to_pylist() for column in batch.columns)
                    for number, values in enumerate(zip(*columns, strict=True), place):
                        if start <= number < stop:
                            yield Unit(*values)
            place += rows


def read_blocks(
    path: Path,
    start: int,
    stop: int,
    sources: Sequence[Source],
    pages: Pages = "auto",
    column: str | None = None,
    left_out: LeftOut | None = None,
) -> Iterator[list[AnyFile]]:
    """The images of some units, in order, at most `BLOCK` at a time. What cannot be read stands as an image whose decoding
    fails with the reason.

    Args:
        path: of the list.
        start, stop: numbers of units.
        pages: ``images``: each page of a file is one.
        column: as of `write_listing`.
        left_out: counts what is in tar files beside images.

    Raises:
        PetriscopeError: a file has changed since it was listed, or an address cannot be reached. Trying again may help.
    """
    block, held = list[AnyFile](), 0
    skipped = LeftOut() if left_out is None else left_out
    with ThreadPoolExecutor(FETCHES) as pool:
        for image in _images(_read(path, start, stop), sources, column, pool, skipped):
            for each in pages_of(image) if pages == "images" else [image]:
                block.append(each)
            held += len(image.content) if isinstance(image, InMemory) else 0
            if len(block) >= BLOCK or held >= BLOCK_BYTES:
                yield block
                block, held = [], 0
    if block:
        yield block


def _images(
    units: Iterator[Unit], sources: Sequence[Source], column: str | None, pool: ThreadPoolExecutor, left_out: LeftOut
) -> Iterator[AnyFile]:
    waiting: list[Unit] = []
    size = 0
    for unit in units:
        source = sources[unit.place]
        if unit.kind == "image" and source.is_remote:
            waiting.append(unit)
            size += max(unit.size, 0)
            if len(waiting) == BLOCK or size >= BLOCK_BYTES:
                yield from pool.map(partial(_fetched, sources), waiting)
                waiting, size = [], 0
        elif unit.kind == "image":
            yield Path(os.fsdecode(unit.path))
        elif unit.kind == "tar":
            yield from _in_tar(unit, source, left_out)
        else:
            yield from _in_table(unit, source, column)
    yield from pool.map(partial(_fetched, sources), waiting)


def failed(name: str, why: str) -> Within:
    """What stands for an image that cannot be read."""

    def fail() -> bytes:
        raise ValueError(why)

    return Within(name, 0, fail)


def _fetched(sources: Sequence[Source], unit: Unit) -> AnyFile:
    source = sources[unit.place]
    name = source.shown(unit.path)
    if unit.size > MAX_BYTES:
        return failed(name, f"its {unit.size:,} bytes are more than {MAX_BYTES >> 30} GiB")
    try:
        return InMemory(name, source.load(unit.path))
    except FileNotFoundError:
        return failed(name, "it is no longer there")
    except Exception as error:  # each file system raises kinds of its own
        raise PetriscopeError(f"{name} cannot be read: {reason(error)}") from None


def _check_unchanged(unit: Unit, source: Source) -> None:
    name = source.shown(unit.path)
    with remote.reading(name):
        stamp = source.look(unit.path)[1]
    if stamp != unit.stamp:
        raise PetriscopeError(f"{name} has changed since it was listed; put it back, or begin again with another --out")


class _Damaged(Exception):
    """A file of several images is damaged; the message says how."""


def _in_tar(unit: Unit, source: Source, left_out: LeftOut) -> Iterator[AnyFile]:
    """The images in a tar file. If it is damaged, what stands for the rest is one image that cannot be read."""
    name = source.shown(unit.path)
    _check_unchanged(unit, source)
    with source.open(unit.path) as raw:
        content = unpacked(raw, name)
        walked = members(raw, name, unit.size, content)
        while True:
            try:
                member = _of_tar(partial(next, walked, None), source.is_remote)
            except _Damaged as error:
                yield failed(name, f"{error}; the images behind that are missing")
                return
            if member is None:
                return
            if isinstance(member, str):
                continue
            suffix = suffix_of(PurePosixPath(member.name).name)
            if suffix not in SUFFIXES:
                left_out.add(f"{suffix} file{{s}} in tar files" if suffix else "file{s} without a suffix", member.name)
                continue
            below = f"{name}/{member.name}"
            if member.size > MAX_BYTES:
                yield failed(below, f"its {member.size:,} bytes are more than {MAX_BYTES >> 30} GiB")
                continue
            try:
                data = _of_tar(partial(_content, content, member), source.is_remote)
            except _Damaged as error:
                yield failed(name, f"{error}; the images behind that are missing")
                return
            yield InMemory(below, data)


def _content(handle: IO[bytes], member: Member) -> bytes:
    handle.seek(member.at)
    data = handle.read(member.size)
    if len(data) != member.size:
        raise EOFError(f"it ends within {member.name}")
    return data


def _of_tar(read: Callable[[], Any], remote: bool) -> Any:
    """What a parser of tar files gives. What it raises about a damaged file is a `_Damaged`; what a file system raises because it
    cannot be reached is not."""
    import gzip
    import tarfile

    try:
        return read()
    except (DataError, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError) as error:
        raise _Damaged(reason(error)) from None
    except PetriscopeError:
        raise
    except Exception as error:
        if not remote:
            raise _Damaged(reason(error)) from None
        raise PetriscopeError(f"a tar file cannot be read: {reason(error)}") from None


def _in_table(unit: Unit, source: Source, column: str | None) -> Iterator[AnyFile]:
    """The images in a row group of a Parquet file."""
    name = source.shown(unit.path)
    if unit.part == 0:
        _check_unchanged(unit, source)
    with _table(source, unit.path) as file:
        image, seen = parquet_images.image_in(file.schema_arrow, name, column), 0
        before = sum(file.metadata.row_group(part).num_rows for part in range(unit.part))
        batches = file.iter_batches(parquet_images.ROWS, row_groups=[unit.part], columns=[image])
        while True:
            try:
                batch = next(batches, None)
            except OSError as error:
                if source.is_remote:
                    raise PetriscopeError(f"{name} cannot be read: {reason(error)}") from None
                batch = error
            except Exception as error:  # the parser raises many kinds on damaged files
                batch = error
            if isinstance(batch, Exception):
                for row in range(seen, unit.images):
                    yield failed(f"{name} row {before + row}", f"the file is damaged: {reason(batch)}")
                return
            if batch is None:
                break
            for data in parquet_images.bytes_in(batch.column(0)):
                where = f"{name} row {before + seen}"
                yield failed(where, "it has no bytes of an image") if not data else InMemory(where, data)
                seen += 1
    if seen != unit.images:
        raise PetriscopeError(f"{name} has changed since it was listed; put it back, or begin again with another --out")
