"""What files held when they were last read. The index decides which of them must be read again."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from petriscope.core.device import cores
from petriscope.core.errors import DataError, PetriscopeError
from petriscope.core.files import write_text
from petriscope.core.progress import track

REHASH = "PETRISCOPE_REHASH"  # environment variable; unless it is empty or 0, all files are read again
SETTLED = 2_000_000_000  # ns; the clocks of file systems tick at most every two seconds
READ_BYTES = 1 << 20
THREADS = 16
CHUNK = 32  # files per task of a thread

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
    paths: Sequence[Path]

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


def recall(index: Path, paths: Sequence[Path], read: Callable[[Path], str]) -> Recalled:
    """What ``read`` finds in each file, taken from the index where the file is unchanged.

    A file is read again if its size, modification time, change time or inode is not as indexed; if it was modified less than
    two seconds before it was indexed, because a later change could have the same times; and if `REHASH` is set.

    Args:
        index: the file of the index, which is then rewritten. Where that is not possible, the next call reads again.
        read: raises OSError for a file that cannot be read.
    """
    known = {} if os.environ.get(REHASH, "0") not in ("", "0") else _load(index)
    now = time.time_ns()
    statuses = [_status(path) for path in paths]
    values, missing = [], []
    for place, (path, status) in enumerate(zip(paths, statuses, strict=True)):
        *noted, when, value = known.get(str(path), (None, 0, ""))
        trusted = status is not None and noted == [*status] and max(status[1:3]) + SETTLED <= when
        values.append(value if trusted else "")
        if status is not None and not trusted:
            missing.append(place)
    if missing:
        parts = [missing[start : start + CHUNK] for start in range(0, len(missing), CHUNK)]
        with ThreadPoolExecutor(min(cores(), THREADS)) as pool:
            found = pool.map(lambda places: [_attempt(read, paths[place]) for place in places], parts)
            each = (value for part in found for value in part)
            for place, value in zip(missing, track(each, "reading", len(missing), "files"), strict=True):
                values[place] = value
        again = {*missing}
        entries = {
            str(path): [*status, now if place in again else known[str(path)][4], values[place]]
            for place, (path, status) in enumerate(zip(paths, statuses, strict=True))
            if status is not None and values[place]
        }
        with suppress(PetriscopeError, OSError):
            write_text(index, json.dumps(entries))
    return Recalled(values, statuses, paths)


def content_digest(path: Path) -> str:
    """A hash of the bytes of a file, in 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as handle:
        while block := handle.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def row_digests(rows: np.ndarray) -> np.ndarray:
    """A hash of each row of an array [N, ...], uint8 [N, 16]; equal rows have equal hashes."""
    hashes = b"".join(hashlib.blake2b(row, digest_size=16).digest() for row in np.ascontiguousarray(rows))
    return np.frombuffer(hashes, dtype=np.uint8).reshape(len(rows), 16)


def _status(path: Path) -> Status | None:
    """The status of a regular file; None for any other."""
    try:
        found = path.stat()
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


def _load(index: Path) -> dict[str, list]:
    """The entries of an index, [*status, time indexed in ns, value] by path; none if it is missing or damaged."""
    try:
        entries = json.loads(index.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(entries, dict):
        return {}
    kinds = [int] * 5 + [str]
    return {path: entry for path, entry in entries.items() if isinstance(entry, list) and [*map(type, entry)] == kinds}
