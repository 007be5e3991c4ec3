"""The cache of decoded images and unpacked archives: arrays in npy files, each with a checksum beside it."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from petriscope.core.device import free_memory, gib
from petriscope.core.errors import DataError, PetriscopeError, RequestError
from petriscope.core.files import atomic, expand_user, locked, write_text
from petriscope.data import index

VERSION = 3  # raise it when decoding changes, so that old entries are no longer used
READ_BYTES = 1 << 22
# What belongs to an entry. The last two index its checksum and the digests of its rows.
BESIDE = (".json", ".sum", ".rows")
MOST_BYTES = 20 << 30  # the size of the cache; the least recently used entries are dropped beyond it

ADVICE = "set PETRISCOPE_CACHE to a folder that may be written"

Buffer: TypeAlias = bytes | memoryview


def cache_dir() -> Path:
    """``$PETRISCOPE_CACHE``, else ``$XDG_CACHE_HOME/petriscope``, else ``~/.cache/petriscope``.

    Raises:
        RequestError: the user has no home folder.
    """
    if own := os.environ.get("PETRISCOPE_CACHE"):
        return expand_user(own)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "petriscope"
    except RuntimeError:
        raise RequestError(f"there is no home folder to keep decoded images in; {ADVICE}") from None


def make_key(*parts: Any) -> str:
    """The key of an entry made from ``parts``, any values that their repr describes in full."""
    return hashlib.blake2b(repr((VERSION, *parts)).encode(errors="surrogateescape"), digest_size=16).hexdigest()


def contents(paths: Sequence[Path | str], source: str, looked: index.Looked | None = None) -> index.Recalled:
    """A digest of the bytes of each file of a source. Only files that may have changed since the last call are read."""
    return index.recall(_index_of(source), paths, index.content_digest, looked)


def look(paths: Sequence[Path | str], source: str) -> index.Looked:
    """Which files of a source `contents` would read."""
    return index.look(_index_of(source), paths)


def _index_of(source: str) -> Path:
    return cache_dir() / f"{make_key('index', str(Path(source).absolute()))}.index"


def store(
    key: str, shape: Sequence[int], dtype: np.dtype, blocks: Iterable[np.ndarray], about: dict[str, Any] | None = None
) -> None:
    """Write an array to the cache block by block. A reader sees all of it or nothing.

    Args:
        key: from `make_key`.
        shape: the shape of the whole array; the blocks' first dimensions add up to ``shape[0]``.
        blocks: C-ordered pieces, in order.
        about: JSON values to keep with the array. They are read after the last block, so the blocks' iterator may fill them.

    Raises:
        PetriscopeError: the disk is full or may not be written; nothing is left behind.
    """
    header = io.BytesIO()
    fields = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(map(int, shape))}
    np.lib.format.write_array_header_1_0(header, fields)
    pieces = (np.ascontiguousarray(block, dtype=dtype).data for block in blocks)
    store_stream(key, chain([header.getbuffer()], pieces), about)


def store_stream(key: str, pieces: Iterable[Buffer], about: dict[str, Any] | None = None) -> None:
    """Write the bytes of an npy file to the cache. They are written, not mapped, so that a full disk raises an error instead
    of a bus error.

    Raises:
        PetriscopeError: the disk is full or may not be written; nothing is left behind.
    """
    path = cache_dir() / f"{key}.npy"
    checksum = size = 0
    with atomic(path, own=True) as temporary, temporary.open("wb") as handle:
        for piece in pieces:
            size += handle.write(piece)
            checksum = zlib.crc32(piece, checksum)
    # So that what was written just now is not read again. Where it is not all there, it is read, and found to be damaged.
    known = index.look(path.with_suffix(".sum"), [path])
    if known.statuses[0] is not None and known.statuses[0][0] == size:
        known.complete([str(checksum)], settled=True)
    noted = json.dumps(about or {})
    sums = {"array": checksum, "about": zlib.crc32(noted.encode())}
    write_text(path.with_suffix(".json"), json.dumps({"checksums": sums, "about": noted}), own=True)
    prune(MOST_BYTES, spared=path)


def note(key: str) -> None:
    """Note that there is something under a key; `is_noted` finds it until the cache needs the room."""
    if not is_noted(key):
        with suppress(PetriscopeError, OSError):  # the cache may be read-only
            write_text(cache_dir() / f"{key}.index", "", own=True)


def is_noted(key: str) -> bool:
    return (cache_dir() / f"{key}.index").is_file()


def rename(draft: str, key: str) -> None:
    """Give an entry, which was stored under a key of its own, the key that it is looked for by."""
    old, new = (cache_dir() / f"{each}.npy" for each in (draft, key))
    with lock(key), suppress(OSError):  # if another process has dropped it, it is made again
        for suffix in BESIDE:
            new.with_suffix(suffix).unlink(missing_ok=True)
        checksum = index.recall(old.with_suffix(".sum"), [old], _checksum).values
        old.replace(new)
        index.look(new.with_suffix(".sum"), [new]).complete(checksum, settled=True)
        old.with_suffix(".json").replace(new.with_suffix(".json"))
        old.with_suffix(".sum").unlink(missing_ok=True)


def fetch_or_store(key: str, mapped: bool, store: Callable[[], None]) -> tuple[np.ndarray, dict[str, Any]]:
    """`fetch`; if there is nothing, ``store`` first. Of several processes that want an entry one stores it, and the others wait.

    Args:
        store: calls `petriscope.data.cache.store` or `store_stream` with the key.

    Raises:
        PetriscopeError: the disk is full, or the cache may not be written.
        DataError: the entry cannot be read back.
    """
    if (found := fetch(key, mapped)) is not None:
        return found
    with lock(key):
        if (found := fetch(key, mapped)) is None:
            store()
            found = fetch(key, mapped)
    if found is None:
        raise DataError(f"{cache_dir() / key}.npy was just written and cannot be read back unchanged; check the disk")
    return found


@contextmanager
def lock(key: str, busy: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of an entry, which whoever writes or removes it needs.

    Args:
        busy: called if another process has the lock; then it is waited for.

    Raises:
        PetriscopeError: the cache may not be written, or an error of the disk within; the message says where else to write.
    """
    try:
        # The file stays: if it were removed, a process that waits for it and one that makes it anew could both hold the lock.
        with locked(cache_dir() / "locks" / f"{key}.lock", busy):
            yield
    except PetriscopeError as error:
        if type(error) is PetriscopeError and isinstance(error.__cause__, OSError):
            raise PetriscopeError(f"{error}. For another place, {ADVICE}") from error
        raise


class _InUse(Exception):
    pass


def _in_use() -> None:
    raise _InUse


def prune(most: int, spared: Path | None = None) -> None:
    """Drop the least recently used entries until the rest take at most ``most`` bytes.

    Args:
        spared: an entry to keep.

    Entries that are being written stay. A process that has mapped an entry can still read it after it is dropped. Where the
    system does not remove open files (Windows), such an entry stays.
    """
    try:
        sizes = {path: _status(path)[0] for kind in ("*.npy", "*.index") for path in cache_dir().glob(kind)}
    except OSError:
        return
    total = sum(sizes.values())
    for path in sorted(sizes, key=lambda path: max(_status(path.with_suffix(end))[1] for end in (".json", ".index"))):
        if total <= most:
            return
        if path != spared:
            with suppress(OSError, PetriscopeError, _InUse), lock(path.stem, busy=_in_use):
                path.unlink()
                for suffix in BESIDE:
                    path.with_suffix(suffix).unlink(missing_ok=True)
                total -= sizes[path]


def _status(path: Path) -> tuple[int, int]:
    """(size, modification time in ns) of a file; (0, 0) if there is none."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def fetch(key: str, mapped: bool) -> tuple[np.ndarray, dict[str, Any]] | None:
    """The array and its ``about`` kept under ``key``; None if there is none or it is damaged.

    Args:
        mapped: map the file read-only (`numpy.memmap`) rather than read it.
    """
    path = cache_dir() / f"{key}.npy"
    if not all(each.is_file() for each in (path, path.with_suffix(".json"))):
        return None  # also where a pipe lies, which would be waited for
    try:
        noted = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        about = noted["about"]
        checksum = index.recall(path.with_suffix(".sum"), [path], _checksum).values[0]
        if noted["checksums"] != {"array": int(checksum), "about": zlib.crc32(about.encode())}:
            return None
        with suppress(OSError):  # the cache may be read-only
            os.utime(path.with_suffix(".json"))  # used now
        return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False), dict(json.loads(about))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def row_digests(array: np.ndarray) -> np.ndarray:
    """`index.row_digests`, which are computed once for an array that is mapped from an entry."""
    if not isinstance(array, np.memmap):
        return index.row_digests(array)
    path, size = Path(array.filename or ""), max(array[:1].nbytes, 1)

    def compute(path: Path) -> str:
        out = []
        with path.open("rb") as handle:
            handle.seek(array.offset)
            while block := handle.read(max(READ_BYTES // size, 1) * size):
                out.append(index.row_digests(np.frombuffer(block, dtype=np.uint8).reshape(-1, size)).tobytes().hex())
        return "".join(out)

    known = index.recall(path.with_suffix(".rows"), [path], compute).values[0]
    if len(known) != 32 * len(array):  # another process has dropped the entry; what is mapped stays
        return index.row_digests(array)
    return np.frombuffer(bytes.fromhex(known), dtype=np.uint8).reshape(-1, 16)


def check_room(shape: tuple[int, int, int, int], mapped: bool, bits: int = 8) -> None:
    """Check that images find room in memory, or on the disk of the cache if they are mapped from it.

    Args:
        shape: of the array of all images, [N, H, W, C].
        bits: of a value, 8 or 16.

    Raises:
        DataError: they do not; the message names ``data.size``.
    """
    folder = cache_dir()
    while mapped and not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    free, size = shutil.disk_usage(folder).free if mapped else free_memory(), math.prod(shape) * bits // 8
    if size > free:
        count, height, width, _ = shape
        where = f"on the disk of {folder}" if mapped else "of memory"
        raise DataError(
            f"{count:,} images of {height} x {width} pixels take {gib(size)}, and {gib(free)} {where} are free; make them "
            "smaller with --set data.size=N, or, if they are in tar or Parquet shards, read them while training with --set "
            "data.stream=true"
        )


def choose_mapped(size: int, memory: str, what: str) -> bool:
    """Whether an array of ``size`` bytes is mapped from disk rather than held in memory.

    Args:
        memory: ``data.memory``; ``auto`` maps what takes more than half of the free memory.

    Raises:
        DataError: ``resident`` was asked for and the memory does not hold it.
    """
    free = free_memory()
    if memory == "resident" and size > free:
        raise DataError(
            f"{what} takes {size / 2**30:.1f} GiB and {free / 2**30:.1f} GiB of memory are free; "
            "map it from disk with --set data.memory=mapped"
        )
    return memory == "mapped" or (memory == "auto" and size > free / 2)


def _checksum(path: Path) -> str:
    value = 0
    with path.open("rb") as handle:
        while block := handle.read(READ_BYTES):
            value = zlib.crc32(block, value)
    return str(value)
