"""Atomic writing: a reader sees the old file or the new one, never a part of it."""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from petriscope.core.errors import PetriscopeError, RequestError

NAME = 100  # characters of a file name that are kept in the name of its temporary file


def expand_user(path: str | os.PathLike[str]) -> Path:
    """The path, with a leading ``~`` or ``~name`` replaced by the home folder.

    Raises:
        RequestError: there is no such user, or the user has no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise RequestError(
            f"{os.fspath(path)}: there is no home folder for {Path(path).parts[0]}; write the path in full"
        ) from None


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path in the folder of ``path``. On success the file is flushed to disk and replaces ``path``.

    Raises:
        PetriscopeError: the disk is full or read-only.
    """
    # The name cannot be guessed, and the file is created here or not at all: no link that lies in wait is followed.
    temporary = path.with_name(f".{path.name[:NAME]}.{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        make_readable(temporary)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``folder``. On success it is renamed to ``folder``; on failure it is removed.

    Raises:
        PetriscopeError: the disk is full or read-only.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            staging.chmod(0o777 & ~_umask())
            yield staging
            staging.replace(folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise disk_error(error, folder) from error


def number_folder(base: Path) -> Path:
    """``base``, with a number appended if it exists."""
    folder, number = base, 2
    while folder.exists():
        folder, number = base.with_name(f"{base.name}-{number}"), number + 1
    return folder


def slug(label: str, otherwise: str = "run") -> str:
    """A label as the name of a folder: other characters become hyphens. ``otherwise`` if nothing remains."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in label).strip(".-") or otherwise


def make_readable(path: Path) -> None:
    """Give a file the permissions of a new one; some libraries create files that only their owner can read."""
    path.chmod(0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_text(tree: Any, indent: int | None = None) -> str:
    """Strict JSON, with a line end. Numbers that JSON does not have become null; ``not_finite`` of an object then says what
    each was, by its place: ``{"val.loss": "nan"}``."""
    lost: dict[str, str] = {}

    def strict(value: Any, *place: str) -> Any:
        if isinstance(value, dict):
            return {key: strict(each, *place, str(key)) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [strict(each, *place, str(index)) for index, each in enumerate(value)]
        if isinstance(value, float) and not math.isfinite(value):
            lost[".".join(place)] = str(value)
            return None
        return value

    tree = strict(tree)
    if lost and isinstance(tree, dict):
        tree["not_finite"] = lost
    return json.dumps(tree, indent=indent, allow_nan=False) + "\n"


def disk_error(error: OSError, path: Path) -> PetriscopeError:
    """The error for a write to ``path`` that failed."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return PetriscopeError(
            f"no space left on the disk of {path}; free some space and resume. Files written before are complete"
        )
    return PetriscopeError(f"cannot write {path}: {error.strerror or error}")
