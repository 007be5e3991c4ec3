"""Data sets known by name. They are downloaded once to the cache, and their checksums are verified."""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from petriscope.core.errors import PetriscopeError
from petriscope.core.files import atomic, disk_error, write_text
from petriscope.core.progress import Progress, progress, say
from petriscope.core.recipe import DataSection
from petriscope.data import index
from petriscope.data.cache import cache_dir, lock, make_key
from petriscope.data.imageset import ImageSet
from petriscope.data.sources import cifar_batches, medmnist, npz

TIMEOUT = 10.0  # seconds without a byte
READ_BYTES = 1 << 18
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Download:
    """A file to download from ``url``, called ``file`` in the cache."""

    name: str
    file: str
    url: str
    md5: str

    @property
    def path(self) -> Path:
        return cache_dir() / self.file


CIFAR10 = Download(
    name="cifar10",
    file="cifar-10-python.tar.gz",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
)


def read(name: str, section: DataSection, warnings: list[str]) -> dict[str, ImageSet]:
    """Read ``cifar10``, or a set of MedMNIST: ``bloodmnist``, or ``bloodmnist:64`` for its images of 64 x 64 pixels.

    Raises:
        RequestError: there is no such size.
        PetriscopeError: the file is not in the cache and cannot be downloaded; the message says where to put it.
    """
    if name.partition(":")[0] in medmnist.COLLECTIONS:
        return npz.read(obtain(of_medmnist(name)), section, warnings)
    return cifar_batches.read(obtain_cifar(), section, warnings)


def of_medmnist(source: str) -> Download:
    """The file of a set of MedMNIST.

    Raises:
        RequestError: there is no such size.
    """
    file, md5 = medmnist.file_of(source)
    return Download(source, file, medmnist.URL.format(file=file), md5)


def obtain(download: Download) -> Path:
    """The file in the cache, downloaded if it is missing or damaged.

    Raises:
        PetriscopeError: no network, a full disk, or a file with another checksum.
    """
    path = download.path
    if not _is_whole(path, download):
        with lock(download.file, lambda: say(f"another process downloads {download.name}; waiting for its end")):
            if not _is_whole(path, download):
                with atomic(path, own=True) as temporary:
                    _fetch(download, temporary)
    return path


def _is_whole(path: Path, download: Download) -> bool:
    """Whether the file has its checksum. A file that has not changed since is not read again."""
    place = cache_dir() / f"{make_key('md5', str(path.absolute()))}.index"
    return path.exists() and index.recall(place, [path], _md5).values == [download.md5]


def _fetch(download: Download, path: Path) -> None:
    import pooch
    from requests import RequestException

    try:
        with progress(f"downloading {download.name}", 0, "MiB") as bar:
            pooch.HTTPDownloader(
                progressbar=_Bar(bar), chunk_size=READ_BYTES, timeout=TIMEOUT, headers={"User-Agent": "petriscope"}
            )(download.url, str(path), None)
    except RequestException as error:
        raise PetriscopeError(
            f"cannot download {download.name} from {download.url}: {_reason(error)}. {_advice(download)}"
        ) from None
    if _md5(path) != download.md5:
        raise PetriscopeError(
            f"{download.url} sent a file for {download.name} whose md5 is not {download.md5}; it was removed. "
            f"{_advice(download)}"
        )


def obtain_cifar() -> Path:
    """The folder of CIFAR-10's batches, unpacked once from the archive. The checksums of its files are verified at every
    use."""
    folder = cache_dir() / cifar_batches.FOLDER
    noted = folder / "checksums.json"
    there = all((folder / name).is_file() for name in (noted.name, *_CIFAR_FILES))
    try:
        sums = json.loads(noted.read_text(encoding="utf-8")) if there else {}
        if set(sums) == set(_CIFAR_FILES) and all(_md5(folder / name) == sums[name] for name in _CIFAR_FILES):
            return folder
    except (OSError, ValueError, TypeError):
        pass
    archive = obtain(CIFAR10)
    _unpack(archive, folder)
    write_text(noted, json.dumps({name: _md5(folder / name) for name in _CIFAR_FILES}), own=True)
    return folder


_CIFAR_FILES = (*cifar_batches.TRAIN, cifar_batches.TEST, cifar_batches.META)


def _unpack(archive: Path, folder: Path) -> None:
    """Extract the expected regular files and nothing else."""
    wanted = {f"{cifar_batches.FOLDER}/{name}": name for name in _CIFAR_FILES}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = wanted.get(member.name)
                source = tar.extractfile(member) if name and member.isreg() else None
                if name is None or source is None or member.size > cifar_batches.MAX_BYTES:
                    continue
                with atomic(folder / name, own=True) as temporary:
                    temporary.write_bytes(source.read())
                del wanted[member.name]
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise PetriscopeError(f"{archive} cannot be unpacked: {error}; remove it to download it again") from None
    except OSError as error:
        raise disk_error(error, folder) from error
    if wanted:
        raise PetriscopeError(f"{archive} lacks {', '.join(sorted(wanted))}; remove it to download it again")


class _Bar:
    """A `Progress` as pooch wants it: with the interface of tqdm, in bytes."""

    def __init__(self, bar: Progress) -> None:
        self.bar, self.received = bar, 0

    @property
    def total(self) -> int:
        return self.bar.total * MEBIBYTE

    @total.setter
    def total(self, size: int) -> None:
        self.bar.total = -(-size // MEBIBYTE)

    def update(self, count: int) -> None:
        self.received += count
        self.bar.advance(self.received // MEBIBYTE - self.bar.done)

    def reset(self) -> None:
        self.received = 0

    def close(self) -> None:
        self.bar.close()


def _reason(error: Exception) -> str:
    """The innermost cause that urllib3 and requests wrapped."""
    while isinstance(inner := getattr(error, "reason", None) or next(iter(error.args), None), Exception):
        error = inner
    return str(error) or type(error).__name__


def _advice(download: Download) -> str:
    return f"Without a network, copy the file to {download.path} (md5 {download.md5}), or use your own data with --data PATH"


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as handle:
        while piece := handle.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()
