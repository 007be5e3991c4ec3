"""Sets known by name: downloaded once to the cache, their checksum verified at every use."""

from __future__ import annotations

import hashlib
import http.client
import json
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from petriscope.core.errors import PetriscopeError
from petriscope.core.files import atomic, disk_error, write_text
from petriscope.core.progress import progress
from petriscope.core.recipe import DataSection
from petriscope.data.cache import cache_dir
from petriscope.data.imageset import ImageSet
from petriscope.data.sources import cifar_batches, npz

TIMEOUT = 10.0  # seconds without a byte
READ_BYTES = 1 << 18
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Download:
    """A file that can be had from ``url``; in the cache it is called ``file``."""

    name: str
    file: str
    url: str
    md5: str

    @property
    def path(self) -> Path:
        return cache_dir() / self.file


BLOODMNIST = Download(
    name="bloodmnist",
    file="bloodmnist.npz",
    url="https://zenodo.org/records/10519652/files/bloodmnist.npz?download=1",
    md5="7053d0359d879ad8a5505303e11de1dc",
)
CIFAR10 = Download(
    name="cifar10",
    file="cifar-10-python.tar.gz",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
)


def read(name: str, section: DataSection, warnings: list[str]) -> dict[str, ImageSet]:
    """Read ``bloodmnist`` or ``cifar10``.

    Raises:
        PetriscopeError: it is not in the cache and cannot be downloaded; the message says where to put it.
    """
    if name == "bloodmnist":
        return npz.read(obtain(BLOODMNIST), section, warnings)
    return cifar_batches.read(obtain_cifar(), section, warnings)


def obtain(download: Download) -> Path:
    """The file in the cache, downloaded if it is not there whole. A broken download is taken up where it ended.

    Raises:
        PetriscopeError: no network, a disk that is full, or a file with another checksum.
    """
    path = download.path
    try:
        found = _md5(path) if path.is_file() else None
        if found == download.md5:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, path) from error
    part = path.with_name(path.name + ".part")
    for resumed in (part.exists(), False):
        _download(download, part, found)
        got = _md5(part)
        if got == download.md5:
            part.replace(path)
            return path
        part.unlink()
        if not resumed:  # a part from an earlier day may be of another file: that one is worth a second try
            break
    raise PetriscopeError(
        f"what {download.url} sent for {download.name} has md5 {got}, not {download.md5}; it was "
        f"removed. {_advice(download)}"
    )


def obtain_cifar() -> Path:
    """The folder of CIFAR-10's batches, unpacked once from the archive; its files are checked at every use."""
    folder = cache_dir() / cifar_batches.FOLDER
    noted = folder / "checksums.json"
    try:
        sums = json.loads(noted.read_text(encoding="utf-8"))
        if set(sums) == set(_CIFAR_FILES) and all(_md5(folder / name) == sums[name] for name in _CIFAR_FILES):
            return folder
    except (OSError, ValueError, TypeError):
        pass
    archive = obtain(CIFAR10)
    _unpack(archive, folder)
    write_text(noted, json.dumps({name: _md5(folder / name) for name in _CIFAR_FILES}))
    return folder


_CIFAR_FILES = (*cifar_batches.TRAIN, cifar_batches.TEST, cifar_batches.META)


def _unpack(archive: Path, folder: Path) -> None:
    """Take the expected regular files out of the archive, and nothing else."""
    wanted = {f"{cifar_batches.FOLDER}/{name}": name for name in _CIFAR_FILES}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = wanted.get(member.name)
                source = tar.extractfile(member) if name and member.isreg() else None
                if name is None or source is None or member.size > cifar_batches.MAX_BYTES:
                    continue
                with atomic(folder / name) as temporary:
                    temporary.write_bytes(source.read())
                del wanted[member.name]
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise PetriscopeError(f"{archive} cannot be unpacked: {error}; remove it, and it is downloaded again") from None
    except OSError as error:
        raise disk_error(error, folder) from error
    if wanted:
        raise PetriscopeError(f"{archive} lacks {', '.join(sorted(wanted))}; remove it, and it is downloaded again")


def _download(download: Download, part: Path, found: str | None) -> None:
    """Fill ``part``, from where it ends."""
    try:
        start = part.stat().st_size if part.exists() else 0
        request = urllib.request.Request(download.url, headers={"User-Agent": "petriscope"})
        if start:
            request.add_header("Range", f"bytes={start}-")
        try:
            response = urllib.request.urlopen(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code != 416 or not start:
                raise
            part.unlink()  # the part is as long as the file, or longer
            return _download(download, part, found)
        with response:
            _receive(response, part, start, download)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = (
            getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error) or type(error).__name__
        )
        had = f" (the file at {download.path} has md5 {found})" if found else ""
        kept = " What came is kept; the next try goes on from there." if part.exists() and part.stat().st_size else ""
        raise PetriscopeError(
            f"cannot download {download.name} from {download.url}: {reason}{had}.{kept} {_advice(download)}"
        ) from None


def _receive(response: http.client.HTTPResponse, part: Path, start: int, download: Download) -> None:
    if response.status != 206:
        start = 0  # the server sends all of it
    length = int(response.headers.get("Content-Length") or 0)
    done = start
    with (
        _writing(part, "ab" if start else "wb") as write,
        progress(f"downloading {download.name}", -(-(start + length) // MEBIBYTE), "MiB") as bar,
    ):
        while piece := response.read(READ_BYTES):
            write(piece)
            done += len(piece)
            bar.advance(done // MEBIBYTE - bar.done)
    if length and done < start + length:
        raise http.client.HTTPException(f"the connection broke after {done:,} of {start + length:,} bytes")


class _writing:
    """A file whose write errors are told apart from the network's, which are OSErrors too."""

    def __init__(self, path: Path, mode: str) -> None:
        self.path, self.mode = path, mode

    def __enter__(self) -> Callable[[bytes], None]:
        try:
            self.handle = self.path.open(self.mode)
        except OSError as error:
            raise disk_error(error, self.path) from error
        return self.write

    def write(self, piece: bytes) -> None:
        try:
            self.handle.write(piece)
        except OSError as error:
            raise disk_error(error, self.path) from error

    def __exit__(self, *_: object) -> None:
        try:
            self.handle.close()
        except OSError as error:
            raise disk_error(error, self.path) from error


def _advice(download: Download) -> str:
    return (
        f"Without network: get the file elsewhere and put it at {download.path} (md5 {download.md5}), "
        "or give your own data with --data PATH"
    )


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as handle:
        while piece := handle.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()
