"""The files in zip and tar archives, which are read where they are: nothing is unpacked but what is asked for."""

from __future__ import annotations

import gzip
import io
import json
import stat
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import IO, NamedTuple, cast

import numpy as np

from petriscope.core.errors import DataError, shown
from petriscope.core.files import parsing
from petriscope.core.progress import progress
from petriscope.data import cache, index
from petriscope.data.decode import MAX_BYTES
from petriscope.data.in_memory import Within

ZIP = (".zip",)
TAR = (".tar",)
ZIPPED_TAR = (".tar.gz", ".tgz")
ARCHIVES = (*ZIP, *TAR, *ZIPPED_TAR)
REMEDY = "copy or download it again"
BOMB_BYTES, BOMB_RATIO = 1 << 30, 800  # what unpacks to more than both is no image data
MAX_HEADER = 1 << 20  # bytes of a header of a tar file, such as one for a long name
MAX_FILES = 20_000_000
BLOCK = 512  # bytes; headers and files of a tar begin at multiples of it
PIECE_BYTES = 1 << 22


class Place(NamedTuple):
    """Where a file is in its archive.

    Args:
        name: its path there, with forward slashes.
        size: in bytes.
        at: its number in the directory of a zip file, or the offset of its first byte in a tar file.
    """

    name: str
    size: int
    at: int


@dataclass(frozen=True)
class Listing:
    """What is in an archive.

    Args:
        files: in the order of the archive.
        folders: paths of those that are listed.
        size: bytes of a tar file when unpacked, up to the end of its last file.
    """

    files: list[Place]
    folders: list[str]
    size: int

    def text(self) -> str:
        return json.dumps([self.files, self.folders, self.size])

    @classmethod
    def parse(cls, text: str) -> Listing:
        files, folders, size = json.loads(text)
        return cls([Place(*place) for place in files], folders, size)


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES)


def kept_bytes(key: str, size: int, pieces: Iterable[np.ndarray]) -> np.ndarray:
    """Bytes that are kept in the cache, mapped, uint8 [size].

    Args:
        pieces: are taken if they are not there yet.

    Raises:
        DataError, PetriscopeError: there is no room for them.
    """
    if not size:
        return np.zeros(0, dtype=np.uint8)
    cache.check_room((size, 1, 1, 1), mapped=True)
    return cache.fetch_or_store(key, True, lambda: cache.store(key, [size], np.dtype(np.uint8), pieces))[0]


def open_archive(path: Path) -> Archive:
    """
    Raises:
        DataError: it is damaged, encrypted or unpacks to far more than images do; or it has two files of one name, or one
            that is a link or lies outside of the archive. The message names the file and the member.
    """
    where = f"{path.absolute()}"
    found = index.recall(index_for("members", where), [path], lambda path: list_members(path).text())
    digests = cache.contents([path], f"{where} as one file")
    if not found.values[0] or not digests.values[0]:
        raise DataError(f"{path} cannot be read; is it a file that may be read?")
    return Archive(path, Listing.parse(found.values[0]), digests.values[0], found)


@dataclass(frozen=True)
class Archive:
    """A zip or tar file.

    Args:
        path: of the file; its suffix is one of `ARCHIVES`.
        listing: what is in it.
        digest: of its bytes.
        found: its status when it was listed.
    """

    path: Path
    listing: Listing
    digest: str
    found: index.Recalled

    def file(self, place: Place) -> Within:
        return Within(f"{self.path}/{place.name}", place.size, partial(self.read, place))

    def file_at(self, name: str, size: int, at: int) -> Within:
        return self.file(Place(name, size, at))

    def read(self, place: Place) -> bytes:
        """The content of a file. Whatever is wrong with it is raised as the library raises it."""
        if place.size > MAX_BYTES:
            raise ValueError(f"its {place.size:,} bytes are more than {MAX_BYTES >> 30} GiB")
        if self.path.name.lower().endswith(ZIP):
            with self._zip.open(self._zip.infolist()[place.at]) as handle:
                data = handle.read()
        elif self.path.name.lower().endswith(TAR):
            with self.path.open("rb") as file:
                file.seek(place.at)
                data = file.read(place.size)
        else:
            data = self._unpacked[place.at : place.at + place.size].tobytes()
        if len(data) != place.size:
            raise ValueError(f"the archive has {len(data):,} of its {place.size:,} bytes")
        return data

    @cached_property
    def _zip(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.path)

    @cached_property
    def _unpacked(self) -> np.ndarray:
        """The bytes of a packed tar file, uint8 [N]. They are kept in the cache, because what is packed can only be read from
        its beginning."""
        size = self.listing.size
        key = cache.make_key("unpacked", self.digest, size)

        def pieces() -> Iterator[np.ndarray]:
            left = size
            label = f"unpacking {self.path.name}"
            with (
                parsing(self.path, REMEDY, DataError),
                gzip.open(self.path) as file,
                progress(label, size >> 20, "MiB") as bar,
            ):
                while left and (piece := file.read(min(left, PIECE_BYTES))):
                    left -= len(piece)
                    bar.advance(len(piece) >> 20)
                    yield np.frombuffer(piece, dtype=np.uint8)
                rest = 0
                while piece := file.read(PIECE_BYTES):  # to its end, where the checksum is
                    rest += len(piece)
                    if rest > BOMB_BYTES:
                        raise DataError(
                            f"{self.path} has more than {BOMB_BYTES:,} bytes behind its last file; {REMEDY}"
                        )
            if left:
                raise DataError(f"{self.path} is shorter than it was; start again when nothing writes to it")

        return kept_bytes(key, size, pieces())


@dataclass(frozen=True)
class Members:
    """What is known of files in archives, as `petriscope.data.index.Recalled` has it of files.

    Args:
        values: a digest for each of them.
        archives: statuses of the files that they are in.
    """

    values: list[str]
    archives: index.Recalled

    def check_unchanged(self, names: Sequence[str]) -> None:
        """
        Raises:
            DataError: a file that they are in has changed since it was listed.
        """
        self.archives.check_unchanged([str(path) for path in self.archives.paths])


def index_for(kind: str, where: str) -> Path:
    """The file of an index of what was found at a place."""
    return cache.cache_dir() / f"{cache.make_key(kind, where)}.index"


def list_members(path: Path) -> Listing:
    """What is in an archive; only its directory or its headers are read."""
    with parsing(path, REMEDY, DataError):
        found = _list_zip(path) if path.name.lower().endswith(ZIP) else _list_tar(path)
        known = {place.name for place in found.files}
        if len(known) < len(found.files):
            names = [place.name for place in found.files]
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{path} has {twice} twice; keep one of them")
    return found


def _list_zip(path: Path) -> Listing:
    files, folders, total = list[Place](), list[str](), 0
    with zipfile.ZipFile(path) as archive:
        for number, info in enumerate(archive.infolist()):
            name = safe_path(info.filename.replace("\\", "/"), path)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if info.is_dir() or kind == stat.S_IFDIR:
                folders += [name] if name else []
                continue
            if kind not in (0, stat.S_IFREG):
                raise DataError(_no_file(path, name))
            if info.flag_bits & 1:
                raise DataError(f"{path}: {name} is encrypted; pack the files without a password")
            files.append(Place(name, info.file_size, number))
            total += info.file_size
    _check_size(path, total)
    return Listing(files, folders, 0)


def _list_tar(path: Path) -> Listing:
    files, folders, end = list[Place](), list[str](), 0
    with path.open("rb") as raw:
        for place in members(raw, path, path.stat().st_size):
            if isinstance(place, str):
                folders.append(place)
                continue
            files.append(place)
            end = place.at + place.size
            if len(files) > MAX_FILES:
                raise DataError(f"{path} has more than {MAX_FILES:,} files")
    return Listing(files, folders, end)


def unpacked(raw: IO[bytes], path: PurePath | str) -> IO[bytes]:
    """An open tar file, or what is in one that is packed, by its name."""
    plain = str(path).lower().endswith(TAR)
    return raw if plain else cast(IO[bytes], gzip.GzipFile(fileobj=raw))


def members(raw: IO[bytes], path: PurePath | str, size: int, content: IO[bytes] | None = None) -> Iterator[Place | str]:
    """What is in a tar file, in its order: files, and the names of folders. Only headers are read.

    Args:
        raw: the open file.
        path: its name in messages, and whether it is packed.
        size: its bytes.
        content: `unpacked` of it, which may be read, to the end of a file, when that was given; None: it is made.

    Raises:
        DataError: it is damaged, or has what is no regular file or lies outside of it.
    """
    packed = not str(path).lower().endswith(TAR)
    limit = max(BOMB_BYTES, BOMB_RATIO * size) if packed else size
    before, last = "its beginning", -1
    with _Bounded(unpacked(raw, path) if content is None else content, limit, path) as handle:
        with tarfile.open(fileobj=handle, mode="r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # or else they are all kept
                name = safe_path(member.name, path)
                if member.size < 0 or member.offset <= last:
                    raise DataError(f"{path}: the header of {shown(name)} is damaged; {REMEDY}")
                last = member.offset
                if member.isdir():
                    if name:
                        yield name
                elif not member.isreg() or member.sparse is not None:
                    raise DataError(_no_file(path, name))
                else:
                    yield Place(name, member.size, member.offset_data)
                    before = name
            place = archive.offset
        # tarfile takes a damaged header for the end of the archive.
        handle.seek(place)
        block = handle.read(BLOCK)
        if block.strip(b"\0"):
            raise DataError(f"{path} is damaged at byte {place:,}, behind {before}; {REMEDY}")
        if not block:
            raise DataError(f"{path} was cut off behind {before}: it has no end mark; {REMEDY}")


def safe_path(name: str, path: PurePath | str) -> str:
    """The path of a member below the archive, with forward slashes."""
    parts = PurePosixPath(name).parts
    if name.startswith("/") or PureWindowsPath(name).drive or ".." in parts or "\0" in name:
        raise DataError(
            f"{path}: {shown(name)} would lie outside of the folder that it is unpacked to; pack the files with paths below it"
        )
    return "/".join(parts)


def _no_file(path: PurePath | str, name: str) -> str:
    return f"{path}: {name} is a link or no regular file; pack the file itself (tar --dereference --hard-dereference)"


def _check_size(path: Path, total: int) -> None:
    if total > BOMB_BYTES and total > BOMB_RATIO * path.stat().st_size:
        raise DataError(
            f"{path} unpacks from {path.stat().st_size:,} to {total:,} bytes, which no images do; pack the images alone"
        )


class _Bounded(io.RawIOBase):
    """A file as tarfile reads it: as far as ``limit`` and in pieces of a header."""

    def __init__(self, file: IO[bytes], limit: int, path: PurePath | str) -> None:
        self.file, self.limit, self.path = file, limit, path

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise DataError(f"{self.path}: a header claims {size:,} bytes; {REMEDY}")
        return self.file.read(size)

    def seek(self, place: int, whence: int = 0) -> int:
        if whence or place < 0:
            raise DataError(f"{self.path}: a header is damaged; {REMEDY}")
        if place > self.limit:
            raise DataError(
                f"{self.path} claims more than {self.limit:,} bytes; is it damaged, or no archive of images?"
            )
        return self.file.seek(place)

    def tell(self) -> int:
        return self.file.tell()
