"""Sources at an address, such as ``s3://bucket/cells``: they are listed and copied into the cache through fsspec."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from petriscope.core.errors import DataError, MissingSource, PetriscopeError, RequestError, shown
from petriscope.core.files import atomic, reason, slug, write_text
from petriscope.core.progress import progress, say
from petriscope.data import cache
from petriscope.data.sources.packed import safe_path

THREADS = 8
PIECE_BYTES = 1 << 20
MAX_FILES = 5_000_000
MANIFEST = "manifest.json"
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_STAMPS = (
    "ETag",
    "LastModified",
    "mtime",
    "created",
    "last_modified",
    "updated",
)  # what tells versions of a file apart


def is_address(source: str) -> bool:
    return _ADDRESS.match(source) is not None


@contextmanager
def local_copy(source: str, notes: list[str]) -> Iterator[Path]:
    """The copy of a source in the cache, in which only files that are new or have changed are copied again. Within, errors and
    ``notes`` that name it name the source instead.

    Raises:
        RequestError: fsspec, or what it needs for such addresses, is not installed.
        MissingSource: there is nothing.
        PetriscopeError: it cannot be read.
    """
    path = copy(source)
    before = len(notes)
    try:
        yield path
    except PetriscopeError as error:
        raise type(error)(str(error).replace(str(path), source)) from None
    notes[before:] = [note.replace(str(path), source) for note in notes[before:]]


def open_system(source: str) -> tuple[Any, str]:
    """The file system of an address, of fsspec, and the path in it.

    Raises:
        RequestError: fsspec, or what it needs for such addresses, is not installed; or it is no address.
    """
    try:
        import fsspec
    except ImportError:
        raise RequestError(f"{source} needs fsspec; install it with: pip install 'petriscope[remote]'") from None
    try:
        system, root = fsspec.core.url_to_fs(source)
    except ImportError as error:
        raise RequestError(f"{source}: {reason(error)}; try: pip install 'petriscope[remote]'") from None
    except Exception as error:  # each file system raises kinds of its own
        raise RequestError(f"{shown(source)} is no address that can be read: {reason(error)}") from None
    return system, root


def listed(source: str) -> tuple[Any, str, dict[str, tuple[str, Any]]]:
    """The files at an address.

    Returns:
        their file system; the last part of the address; and by their names below the address, where they are and what the file
        system says of them. The name of a file that is the source itself is empty.

    Raises:
        as `local_copy`.
    """
    system, root = open_system(source)
    with reading(source):
        system.invalidate_cache()
        one = bool(system.isfile(root))
        every = {root: system.info(root)} if one else system.find(root, detail=True)
    if not every:
        raise MissingSource(f"there is nothing at {source}")
    if len(every) > MAX_FILES:
        raise DataError(f"{source} has more than {MAX_FILES:,} files")
    base = system._strip_protocol(root).rstrip("/")
    found = {}
    for place, info in every.items():
        below = "" if one else place[len(base) :].lstrip("/")
        if below or one:
            found[safe_path(below, Path(source))] = (place, info)
    return system, base.partition("?")[0].rpartition("/")[2], found


def copy(source: str) -> Path:
    """`local_copy` as a path."""
    system, name, found = listed(source)
    key = cache.make_key("remote", source)
    home = cache.cache_dir() / "remote" / key
    target = home / slug(name, "source")
    with cache.lock(key, lambda: say(f"another process copies {source}; waiting for its end")):
        _update(system, found, home, target, source)
    return target


def _update(system: Any, found: dict[str, tuple[str, Any]], home: Path, target: Path, source: str) -> None:
    """Bring the copy up to date."""
    noted = home / MANIFEST
    try:
        known = json.loads(noted.read_text(encoding="utf-8")) if noted.is_file() else {}
    except (OSError, ValueError):
        known = {}
    stamps = {name: stamp_of(info) for name, (_, info) in found.items()}
    missing = [
        name
        for name in found
        if stamps[name] is None or known.get(name) != stamps[name] or not (target / name).is_file()
    ]
    for name in [name for name in known if name not in found]:
        (target / name).unlink(missing_ok=True)
    _remove_empty(target)
    size = sum(int(found[name][1].get("size") or 0) for name in missing)
    home.mkdir(parents=True, exist_ok=True)
    if size > (free := shutil.disk_usage(home).free):
        raise PetriscopeError(
            f"{source} has {size:,} bytes, and {free:,} are free on the disk of {home}; tar and Parquet shards can be read from "
            "there while training, with --set data.stream=true"
        )

    def fetch(name: str) -> int:
        place, info = found[name]
        with atomic(target / name if name else target, own=True) as temporary:
            count = 0
            with reading(source, name), system.open(place, "rb") as remote, temporary.open("wb") as file:
                while piece := remote.read(PIECE_BYTES):
                    file.write(piece)
                    count += len(piece)
            if info.get("size") is not None and count != info["size"]:
                raise PetriscopeError(
                    f"{source}: {name or place} has {count:,} of its {info['size']:,} bytes; try again"
                )
        return count

    done = 0
    with ThreadPoolExecutor(THREADS) as pool, progress("copying", size >> 20, "MiB") as bar:
        for count in pool.map(fetch, missing):
            bar.advance((done + count >> 20) - (done >> 20))
            done += count
    if missing or known.keys() != stamps.keys():
        write_text(noted, json.dumps(stamps), own=True)


def stamp_of(info: Any) -> list[str] | None:
    """What changes with a file; None if that is not known, so that it is copied again."""
    found = [str(info[key]) for key in _STAMPS if info.get(key) is not None]
    return [str(info.get("size")), *found] if found else None


def _remove_empty(folder: Path) -> None:
    """Empty folders would be classes without images."""
    if folder.is_dir():
        for each in sorted((each for each in folder.rglob("*") if each.is_dir()), reverse=True):
            if not any(each.iterdir()):
                each.rmdir()


@contextmanager
def reading(source: str, name: str = "") -> Iterator[None]:
    """Within, whatever a file system raises becomes one sentence that names the source.

    Raises:
        MissingSource: there is no such file.
        PetriscopeError: it cannot be read.
    """
    try:
        yield
    except PetriscopeError:
        raise
    except FileNotFoundError:
        raise MissingSource(f"there is nothing at {source}{f': {name}' if name else ''}") from None
    except Exception as error:  # each file system raises kinds of its own
        where = f"{source}: {name}" if name else source
        raise PetriscopeError(f"{where} cannot be read: {reason(error)}") from None
