"""Files: paths and texts that come from outside; locks; and writing so that a reader sees the old file or the new one, never
a part of it."""

from __future__ import annotations

import codecs
import errno
import json
import math
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, lru_cache
from itertools import chain, count
from pathlib import Path
from typing import Any

from petriscope.core.errors import PetriscopeError, RequestError, shortened, shown

NAME = 100  # bytes of a name that are kept in names that are made from it; a file system allows 255
TEMPORARY = re.compile(r"\..*\.[0-9a-f]{16}\.tmp", re.DOTALL)
OLD = 86400.0  # seconds; a temporary file that was not written to for so long belongs to no process any more


def path_text(path: str | os.PathLike[str]) -> str:
    """The text of a path, or of another name of a source or a recipe, that a caller gave.

    Raises:
        RequestError: it is something else.
    """
    if not isinstance(path, str | os.PathLike):
        raise RequestError(f"a path is text or a Path, not {type(path).__name__}")
    return os.fspath(path)


def expand_user(path: str | os.PathLike[str]) -> Path:
    """The path, with a leading ``~`` or ``~name`` replaced by the home folder.

    Raises:
        RequestError: it is empty, there is no such user, the user has no home folder, or it is no path at all.
    """
    path = path_text(path)
    if not path:
        raise RequestError("an empty name stands where a path should; is a variable of the shell not set?")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise RequestError(
            f"{path}: there is no home folder for {Path(path).parts[0]}; write the path in full"
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


def user_paths(given: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """`user_path` of one path or of several, each once."""
    each = [given] if isinstance(given, str | os.PathLike) else given
    return list(dict.fromkeys(user_path(path) for path in each))


def read_text(path: Path, limit: int, what: str) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte order mark; without the mark.

    Args:
        limit: bytes that the file may have.
        what: it should be, for messages, such as ``a recipe``.

    Raises:
        RequestError: it may not be read, is larger than that, or is not in UTF-8.
    """
    try:
        with path.open("rb") as handle:
            data = handle.read(min(limit, os.fstat(handle.fileno()).st_size or limit) + 1)
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(data) > limit:
        raise RequestError(f"{path} is larger than {limit:,} bytes; is it {what}?")
    try:
        return data.decode("utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")
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
        PetriscopeError: of that kind; errors that Petriscope raises itself stay what they are, and name the file too.
    """
    end = f"; {remedy}" if remedy else ""
    try:
        yield
    except PetriscopeError as error:
        raise error if str(path) in str(error) else type(error)(f"{path}: {error}{end}") from error
    except Exception as error:  # there is no end to what libraries raise when a file is damaged
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
def atomic(path: Path, own: bool = False) -> Iterator[Path]:
    """Give a temporary path in the folder of ``path``. On success the file is flushed to disk and replaces ``path``. A device or
    a pipe, such as /dev/null, is written to instead.

    Args:
        own: no user chose the path, so that a pipe there is no place to write to and is replaced.

    Raises:
        PetriscopeError: it cannot be written, for example because the disk is full.
    """
    if not own and is_device(path):
        with _sentences(path), tempfile.TemporaryDirectory() as folder:
            content = Path(folder) / "content"
            content.touch()
            yield content
            with content.open("rb") as source, path.open("wb") as device:
                shutil.copyfileobj(source, device)
        return
    temporary = _temporary(path)
    with _sentences(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _sweep_once(path.parent.absolute())
            # The file is created here or not at all: no link that lies in wait is followed.
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            yield temporary
            make_readable(temporary)
            with temporary.open("r+b") as handle:  # for writing, which Windows wants for fsync
                os.fsync(handle.fileno())
            temporary.replace(path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def check_files(folder: Path, names: Iterable[str]) -> None:
    """Refuse a folder in which something else is in the place of a file: a folder or a broken link would be taken for a missing
    file, and a pipe be waited for.

    Raises:
        RequestError: the message names it.
    """
    for path in (folder / name for name in names):
        if os.path.lexists(path) and not path.is_file():
            raise RequestError(f"{path} is not a file, as it should be; restore the file, or move away what is there")


def is_device(path: Path) -> bool:
    """Whether a path is no file to be replaced: a device, a pipe, or what stands for an open file, as /dev/stdout does."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    if stat.S_ISREG(mode):
        return path.is_symlink() and path.absolute().parts[:2] in (("/", "dev"), ("/", "proc"))
    return not stat.S_ISDIR(mode)


@contextmanager
def new_folder(folder: Path, numbered: bool = False) -> Iterator[tuple[Path, Path]]:
    """Give a temporary folder, and the folder that it is renamed to on success. On failure, or if it is empty, it is removed.

    Args:
        numbered: if ``folder`` exists, take the first of ``folder-2``, ``folder-3`` ... that no other process has.

    Raises:
        RequestError: another process has made the folder meanwhile.
        PetriscopeError: it cannot be written, for example because the disk is full.
    """
    staging = _temporary(folder)
    with _sentences(folder), ExitStack() as undo:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep_once(folder.parent.absolute())
        if numbered:
            folder = _claim(folder)
            undo.callback(_remove_empty, folder)
        undo.callback(shutil.rmtree, staging, ignore_errors=True)
        staging.mkdir()
        yield staging, folder
        if not any(staging.iterdir()):
            return
        if os.name == "nt":
            _remove_empty(folder)  # there, not even an empty folder is replaced
        try:
            staging.replace(folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            raise RequestError(f"another process has made {folder} meanwhile; choose another --out") from None
        undo.pop_all()


@contextmanager
def more_files(folder: Path) -> Iterator[Path]:
    """Give a temporary folder. On success its files are moved into ``folder``, which is made if it does not exist, in the order
    in which they were written.

    Raises:
        PetriscopeError: it cannot be written, for example because the disk is full.
    """
    if not folder.exists():
        with new_folder(folder) as (staging, _):
            yield staging
        return
    with new_folder(folder / "new") as (staging, _), _sentences(folder):
        yield staging
        for path in sorted(staging.iterdir(), key=lambda path: path.stat().st_mtime_ns):
            path.replace(folder / path.name)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path``, under a name that cannot be guessed. It is removed at the end.

    Raises:
        PetriscopeError: it cannot be written, for example because the disk is full.
    """
    made = _temporary(path)
    with _sentences(path):
        made.mkdir(parents=True)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _claim(base: Path) -> Path:
    """Make an empty folder: ``base``, or the first free number after it."""
    for folder in chain([base], (base.with_name(f"{base.name}-{number}") for number in count(2))):
        with suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError  # numbers do not end


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def locked(path: Path, busy: Callable[[], None]) -> Iterator[None]:
    """Hold a lock, a file at ``path``, which one process has at a time. The system frees it when the process ends. Where the file
    system has no locks, as some network drives, none is held.

    Args:
        busy: called if another process has the lock; then it is waited for.

    Raises:
        PetriscopeError: the file cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, mode=0o666 & ~_umask())
    with _sentences(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            busy()
            lock.acquire()
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP):
                raise
    try:
        yield
    finally:
        lock.release()


def wait_until_free(path: Path, seconds: float) -> None:
    """Wait until no process holds the lock at ``path``, or for so many seconds."""
    from filelock import FileLock, Timeout

    if path.is_file():
        lock = FileLock(path, mode=0o666 & ~_umask())
        with suppress(Timeout, OSError):
            lock.acquire(timeout=seconds)
        lock.release()


def sweep(folder: Path, age: float = OLD) -> None:
    """Remove what processes that were killed have left in a folder: temporary files and folders not written to for ``age``
    seconds. Who holds the lock of a folder may remove all."""
    with suppress(OSError):
        for path in folder.iterdir():
            if TEMPORARY.fullmatch(path.name):
                with suppress(OSError):
                    if time.time() - path.lstat().st_mtime >= age:
                        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@lru_cache
def _sweep_once(folder: Path) -> None:
    """Of each folder that a process writes into."""
    sweep(folder)


def _temporary(path: Path) -> Path:
    """A name beside ``path`` that cannot be guessed."""
    return path.with_name(f".{cut(path.name)}.{secrets.token_hex(8)}.tmp")


def cut(name: str, most: int = NAME) -> str:
    """The beginning of a name, at most so many bytes of it: names of files are limited in bytes."""
    name = name[:most]
    while len(name.encode("utf-8", "surrogatepass")) > most:
        name = name[:-1]
    return name


def slug(label: str, otherwise: str = "run") -> str:
    """A label as the name of a folder: other characters become hyphens. ``otherwise`` if nothing remains."""
    return cut("".join(c if c.isalnum() or c in "-_." else "-" for c in label).strip(".-")) or otherwise


def make_readable(path: Path) -> None:
    """Give a file the permissions of a new one; some libraries create files that only their owner can read."""
    path.chmod(0o666 & ~_umask())


@cache  # reading it changes it for a moment, which threads must not see
def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str, own: bool = False) -> None:
    """Write a text in UTF-8, with line ends as they are in it; ``own`` as in `atomic`."""
    with atomic(path, own) as temporary:
        temporary.write_bytes(readable(text).encode())


def readable(text: str) -> str:
    """A text that every UTF-8 file and stream can hold: bytes of a file name that are not UTF-8 are written as ``\\xe9``."""
    if text.isascii():
        return text
    other = re.sub("[\ud800-\udc7f\udd00-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)
    return other.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


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


@contextmanager
def _sentences(path: Path) -> Iterator[None]:
    """Turn an error of the system while ``path`` is written into a `disk_error`. Errors about other files stay as they are."""
    try:
        yield
    except OSError as error:
        if not _is_about(error, path):
            raise
        raise disk_error(error, path) from error
    except UnicodeEncodeError as error:
        raise PetriscopeError(f"cannot write {path}: the locale has no such names; set LC_ALL=C.UTF-8") from error
    except Exception as error:
        # Libraries in Rust, such as safetensors, raise errors of their own that tell the system's error in their text.
        if (found := re.search(r"\(os error (\d+)\)", str(error))) is None or isinstance(error, PetriscopeError):
            raise
        raise disk_error(OSError(int(found[1]), os.strerror(int(found[1]))), path) from error


def _is_about(error: OSError, path: Path) -> bool:
    """Whether an error of the system names no file, or ``path``, its temporary form, something in these or a folder that it
    is in."""
    if not isinstance(error.filename, str | os.PathLike):
        return True
    path, named = path.absolute(), Path(error.filename).absolute()
    if named in path.parents:
        return True
    if not named.is_relative_to(path.parent):
        return False
    first = named.relative_to(path.parent).parts[0]
    return first == path.name or first.startswith(f".{cut(path.name)}.")


def disk_error(error: OSError, path: Path) -> PetriscopeError:
    """The error for a write to ``path`` that failed."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return PetriscopeError(
            f"no space left on the disk of {path}; free some space, then resume or start again. Files written before are complete"
        )
    return PetriscopeError(f"cannot write {path}: {error.strerror or error}")
