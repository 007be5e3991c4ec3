"""Files: paths and texts that come from outside, and atomic writing: a reader sees the old file or the new one, never a part
of it."""

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

from petriscope.core.errors import PetriscopeError, RequestError, shortened, shown

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


def user_path(text: str | os.PathLike[str], beside: Path | None = None) -> Path:
    """A path that a user gave, with ``~`` expanded. There may be nothing at it, but it can be looked up.

    Args:
        beside: the folder that a relative path starts from; None: the current one.

    Raises:
        RequestError: as `expand_user`, a name that no file can have, or a folder that may not be searched.
    """
    path = expand_user(text)
    path = path if beside is None else beside / path
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise RequestError(f"{shown(str(text))} cannot be looked up: {error.strerror or error}") from None
    except ValueError as error:
        raise RequestError(f"{shown(str(text))} is no path: {error}") from None
    return path


def read_text(path: Path, limit: int, what: str) -> str:
    """The text of a file in UTF-8, without a byte order mark.

    Args:
        limit: bytes that the file may have.
        what: it should be, for messages, such as ``a recipe``.

    Raises:
        RequestError: it may not be read, is larger than that, or is not in UTF-8.
    """
    try:
        with path.open("rb") as handle:
            data = handle.read(limit + 1)
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(data) > limit:
        raise RequestError(f"{path} is larger than {limit:,} bytes; is it {what}?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{path} is not text in UTF-8, from byte {error.start + 1:,} on; is it {what}? If so, save it in UTF-8"
        ) from None


@contextmanager
def parsing(path: Path | str, remedy: str = "", kind: type[PetriscopeError] = RequestError) -> Iterator[None]:
    """Within, whatever a parser raises about a file becomes one sentence that names the file.

    Args:
        remedy: what to do, the end of the sentence.
        kind: of the error.

    Raises:
        PetriscopeError: of that kind; errors that Petriscope raises itself pass as they are.
    """
    try:
        yield
    except PetriscopeError:
        raise
    except Exception as error:  # there is no end to what libraries raise when a file is damaged
        end = f"; {remedy}" if remedy else ""
        raise kind(f"{path} is damaged or cannot be read: {reason(error)}{end}") from error


def reason(error: Exception) -> str:
    """What an error says, in one short line."""
    if isinstance(error, KeyError):
        return f"{shortened(str(error))} is missing"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return shortened(str(error).strip().partition("\n")[0], 200) or type(error).__name__


def parse_json(data: str | bytes) -> dict[str, Any]:
    """A JSON object; numbers that are not finite, which JSON does not have, are read as None.

    Raises:
        ValueError, RecursionError: it is none.
    """

    def finite(text: str) -> float | None:
        value = float(text)
        return value if math.isfinite(value) else None

    value = json.loads(data, parse_float=finite, parse_constant=lambda name: None)
    if not isinstance(value, dict):
        raise ValueError("it does not contain a JSON object")
    return value


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
