"""What files held when they were last read. The index decides which of them must be read again."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import numpy as np

from petriscope.core.device import cores, uncollected
from petriscope.core.errors import DataError, PetriscopeError
from petriscope.core.files import atomic
from petriscope.core.progress import track

REHASH = "PETRISCOPE_REHASH"  # environment variable; unless it is empty or 0, all files are read again
SETTLED = 2_000_000_000  # ns; the clocks of file systems tick at most every two seconds
READ_BYTES = 1 << 20
THREADS = 16
CHUNK = 32  # files per task of a thread

FORMAT = ["index of files", 2]
MAX_HEAD = 1000  # bytes of the first line of an index
END = "\0"  # between paths, which cannot have it, and between values
NONE = (-1, -1, -1, -1)  # for a file without a status

Status: TypeAlias = tuple[int, int, int, int]  # size, modification time in ns, change time in ns, inode


@dataclass(frozen=True)
class Recalled:
    """What was found in files, and their status before they were read.

    Args:
        values: one per file; empty for a file that cannot be read, or is no regular file.
        statuses: one per file; None for such a file.
        paths: of the files.
    """

    values: list[str]
    statuses: list[Status | None]
    paths: Sequence[Path | str]

    def check_unchanged(self, names: Sequence[str]) -> None:
        """Refuse files that have changed since.

        Args:
            names: of the files in messages.

        Raises:
            DataError: the message has the name of the first.
        """
        if changed := [place for place, path in enumerate(self.paths) if _status(path) != self.statuses[place]]:
            raise DataError(
                f"{len(changed):,} file{'s' if len(changed) > 1 else ''} changed while being read, the first: "
                f"{names[changed[0]]}; start again when nothing writes to them"
            )


@dataclass(frozen=True)
class Looked:
    """What an index knows of files, and which must be read.

    Args:
        index: its file.
        paths, statuses: as in `Recalled`.
        values: what is known, of each file.
        when: the time in ns at which each was indexed, int64 [N].
        missing: the places of the files that must be read.
        new: how many of the files are not in the index at all.
    """

    index: Path
    paths: Sequence[Path | str]
    statuses: list[Status | None]
    values: list[str]
    when: np.ndarray
    missing: list[int]
    new: int

    def complete(self, found: Iterable[str], settled: bool = False) -> Recalled:
        """Take up what was found in the missing files, in their order, and write the index. Where that is not possible, the next
        call reads again.

        Args:
            settled: nobody else writes to these files, which were written just now.
        """
        if not self.missing:
            return Recalled(self.values, self.statuses, self.paths)
        values, when = list(self.values), self.when.copy()
        for place, value in zip(self.missing, found, strict=True):
            values[place] = value
            status = self.statuses[place]
            if settled and status is not None:
                when[place] = max(when[place], max(status[1:3]) + SETTLED)
        kept = [place for place, value in enumerate(values) if value and self.statuses[place] is not None]
        if len(kept) == len(values):
            entries = _Entries([*map(str, self.paths)], _table(self.statuses), when, values)
        else:
            some = [self.statuses[place] for place in kept]
            paths = [str(self.paths[place]) for place in kept]
            entries = _Entries(paths, _table(some), when[kept], [values[place] for place in kept])
        with suppress(PetriscopeError, OSError, UnicodeError):
            entries.write(self.index)
        return Recalled(values, self.statuses, self.paths)


def all_again() -> bool:
    """Whether all files are to be read again."""
    return os.environ.get(REHASH, "0") not in ("", "0")


def look(index: Path, paths: Sequence[Path | str]) -> Looked:
    """What the index at a path knows of files.

    A file must be read again if its size, modification time, change time or inode is not as indexed; if it was modified less than
    two seconds before it was indexed, because a later change could have the same times; and if `REHASH` is set.
    """
    with uncollected():
        known = _Entries.empty() if all_again() else _Entries.read(index)
        now = time.time_ns()
        statuses = [_status(path) for path in paths]
        table, names = _table(statuses), [*map(str, paths)]
        if names == known.paths:
            old, when, values, new = known.table, known.when, known.values, 0
        else:
            places = {name: place for place, name in enumerate(known.paths)}
            rows = np.fromiter((places.get(name, -1) for name in names), np.int64, len(names))
            old, when = np.r_[known.table, [NONE]][rows], np.r_[known.when, 0][rows]
            values = [known.values[row] if row >= 0 else "" for row in rows.tolist()]
            new = int((rows < 0).sum())
        there = np.fromiter((status is not None for status in statuses), bool, len(statuses))
        trusted = there & (old == table).all(1) & (table[:, 1:3].max(1, initial=0) <= when - SETTLED)
        if trusted.all():
            return Looked(index, paths, statuses, values, when, [], new)
        values = [value if good else "" for value, good in zip(values, trusted.tolist(), strict=True)]
        missing = np.flatnonzero(there & ~trusted).tolist()
        return Looked(index, paths, statuses, values, np.where(trusted, when, now), missing, new)


def recall(
    index: Path, paths: Sequence[Path | str], read: Callable[[Path], str], looked: Looked | None = None
) -> Recalled:
    """What ``read`` finds in each file, taken from the index where the file is unchanged, see `look`.

    Args:
        index: the file of the index, which is then rewritten.
        read: raises OSError for a file that cannot be read.
        looked: from `look`, if it was called already.
    """
    looked = look(index, paths) if looked is None else looked
    missing = looked.missing
    if not missing:
        return looked.complete([])
    parts = [missing[start : start + CHUNK] for start in range(0, len(missing), CHUNK)]
    with ThreadPoolExecutor(min(cores(), THREADS)) as pool:
        found = pool.map(lambda places: [_attempt(read, Path(paths[place])) for place in places], parts)
        each = (value for part in found for value in part)
        return looked.complete(track(each, "reading", len(missing), "files"))


def content_digest(path: Path) -> str:
    """A hash of the bytes of a file, in 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as handle:
        while block := handle.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def digest_of(content: bytes | memoryview) -> bytes:
    """The hash of 16 bytes that `content_digest` and `row_digests` have of such bytes."""
    return hashlib.blake2b(content, digest_size=16).digest()


def row_digests(rows: np.ndarray) -> np.ndarray:
    """A hash of each row of an array [N, ...], uint8 [N, 16]; equal rows have equal hashes."""
    hashes = b"".join(digest_of(row.data) for row in np.ascontiguousarray(rows))
    return np.frombuffer(hashes, dtype=np.uint8).reshape(len(rows), 16)


def repeats(digests: Sequence[bytes]) -> np.ndarray:
    """The rows whose digest an earlier row has too, int64."""
    first: dict[bytes, int] = {}
    return np.array([row for row, digest in enumerate(digests) if first.setdefault(digest, row) != row], np.int64)


def _status(path: Path | str) -> Status | None:
    """The status of a regular file; None for any other."""
    try:
        found = os.stat(path)  # noqa: PTH116 (a path for each of many files would take longer)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _attempt(read: Callable[[Path], str], path: Path) -> str:
    try:
        return read(path)
    except OSError:
        return ""


def _table(statuses: Sequence[Status | None]) -> np.ndarray:
    """Statuses as int64 [N, 4]; `NONE` where there is none."""
    flat = chain.from_iterable(NONE if status is None else status for status in statuses)
    try:
        return np.fromiter(flat, np.int64, 4 * len(statuses)).reshape(-1, 4)
    except OverflowError:  # times beyond the year 2262; file systems whose inodes have 64 bits
        rows = [[*map(_within_64_bits, status or NONE)] for status in statuses]
        return np.array(rows, dtype=np.int64).reshape(-1, 4)


def _within_64_bits(value: int) -> int:
    return value if -(1 << 63) <= value < 1 << 63 else (1 << 63) - 1


@dataclass(frozen=True)
class _Entries:
    """What an index has of its files: their paths, statuses [N, 4], when they were indexed [N], and what was found in them. It is
    written as one block of bytes for each, behind a line with their lengths and a checksum: as JSON, to read it took longer than
    to look at the files."""

    paths: list[str]
    table: np.ndarray
    when: np.ndarray
    values: list[str]

    @classmethod
    def empty(cls) -> _Entries:
        return cls([], np.zeros((0, 4), np.int64), np.zeros(0, np.int64), [])

    def write(self, path: Path) -> None:
        texts = [END.join(each).encode("utf-8", "surrogateescape") for each in (self.paths, self.values)]
        blocks = [np.ascontiguousarray(each, "<i8").tobytes() for each in (self.table, self.when)]
        body = b"".join([*blocks, *texts])
        head = [*FORMAT, len(self.paths), *map(len, texts), zlib.crc32(body)]
        with atomic(path, own=True) as temporary:
            temporary.write_bytes(json.dumps(head).encode() + b"\n" + body)

    @classmethod
    def read(cls, path: Path) -> _Entries:
        """Without entries if the index is missing or damaged."""
        if not path.is_file():  # a pipe would be waited for
            return cls.empty()
        try:
            with path.open("rb") as handle:
                *form, count, names, rest, checksum = json.loads(handle.readline(MAX_HEAD))
                body = handle.read()
            if form != FORMAT or zlib.crc32(body) != checksum or len(body) != 40 * count + names + rest:
                return cls.empty()
            numbers = np.frombuffer(body, "<i8", 5 * count).astype(np.int64, copy=False)
            start = 40 * count
            texts = [body[start : start + names], body[start + names :]]
            paths, values = (text.decode("utf-8", "surrogateescape").split(END) for text in texts)
            if count == len(paths) == len(values):
                return cls(paths, numbers[: 4 * count].reshape(-1, 4), numbers[4 * count :], values)
        except (OSError, ValueError, TypeError, RecursionError):
            pass
        return cls.empty()
