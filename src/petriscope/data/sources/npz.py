"""npz files in MedMNIST's layout: ``{train,val,test}_images`` and ``_labels`` or ``_masks``, and optionally ``classes`` and
``_groups``."""

from __future__ import annotations

import math
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from petriscope.core.device import free_memory
from petriscope.core.errors import DataError, PetriscopeError, near
from petriscope.core.recipe import DataSection
from petriscope.data import cache
from petriscope.data.imageset import SPLITS, ImageSet
from petriscope.data.sources import labels as label_rules
from petriscope.data.sources import mars
from petriscope.data.sources.arrays import build_sets
from petriscope.data.sources.mask_values import build_mask_sets

BLOOD_CELLS = (
    "basophil",
    "eosinophil",
    "erythroblast",
    "immature granulocyte",
    "lymphocyte",
    "monocyte",
    "neutrophil",
    "platelet",
)
COPY_BYTES = 1 << 22
KINDS = ("images", "labels", "masks", "groups")


@dataclass(frozen=True)
class _Member:
    """The header of an array in the zip file, checked against the directory of the file."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read(path: Path, section: DataSection, warnings: list[str]) -> dict[str, ImageSet]:
    """Read an npz file.

    Args:
        path: a file with the arrays ``*_images`` [N, H, W] or [N, H, W, 1 or 3] uint8, uint16, or floats in 0..1; ``*_labels``
            [N] or [N, 1] whole numbers from 0, or ``*_masks`` [N, H, W] uint8; optionally ``classes`` [K] strings and
            ``*_groups`` [N]; or with the arrays of `petriscope.data.sources.mars`.

    Raises:
        DataError: the file is damaged, holds pickled objects, lacks an array, or an array is of the wrong kind.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, path, section, warnings)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path} is not a complete npz file: {error}; copy or download it again") from None
    except (NotImplementedError, RuntimeError) as error:  # an unknown compression, a password
        raise DataError(f"{path} cannot be unpacked: {error}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def _read(archive: zipfile.ZipFile, path: Path, section: DataSection, warnings: list[str]) -> dict[str, ImageSet]:
    names = {info.filename.removesuffix(".npy") for info in archive.infolist() if info.filename.endswith(".npy")}
    if mars.is_mars(names):
        for name in sorted(names & {mars.TRAIN, mars.NAMES}):
            _inspect(archive, name, path)
        return mars.read(lambda name: _load(archive, name, path), names, path, section, warnings)
    splits = _splits(names, path)
    members = {name: _inspect(archive, name, path) for name in _wanted(splits, names)}
    for split in list(splits):
        count = members[f"{split}_images"].shape[:1]
        for kind in KINDS[1:]:
            other = members.get(f"{split}_{kind}")
            if other is not None and other.shape[:1] != count:
                raise DataError(
                    f"{path}: {split}_images has shape {list(members[f'{split}_images'].shape)} and {split}_{kind} "
                    f"{list(other.shape)}; their first dimensions must agree"
                )
        if count == (0,):
            warnings.append(f"{split}_images is empty and was left out")
            splits.remove(split)
    if not splits:
        raise DataError(f"{path} has no images: its *_images arrays are empty")

    groups = None
    if all(f"{split}_groups" in names for split in splits):
        groups = {split: _load(archive, f"{split}_groups", path).reshape(-1).astype(str) for split in splits}
    size = sum(members[f"{split}_images"].nbytes for split in splits)
    mapped = cache.choose_mapped(size, section.memory, f"{path} unpacked")
    load = _map if mapped else _load
    pixels = {split: load(archive, f"{split}_images", path) for split in splits}
    if f"{splits[0]}_masks" in names:
        masks = {split: _load(archive, f"{split}_masks", path) for split in splits}
        named = _class_names(archive, path) if "classes" in names else None
        return build_mask_sets(pixels, masks, named, section, str(path), warnings, groups)
    numbers = {
        split: label_rules.check_numbers(_load(archive, f"{split}_labels", path), f"{split}_labels of {path}")
        for split in splits
    }
    named = _class_names(archive, path) if "classes" in names else _known_names(numbers, section, path)
    targets, classes = label_rules.name_numbers(numbers, named, section, str(path))
    return build_sets(pixels, targets, classes, section, str(path), warnings, groups)


def _splits(names: set[str], path: Path) -> list[str]:
    known = {f"{split}_{kind}" for split in SPLITS for kind in KINDS}
    for name in sorted(names - known):
        if name.endswith(tuple(f"_{kind}" for kind in KINDS)):
            raise DataError(f"{path}: unknown array {name!r}; {near(name, known)}")
    splits = [split for split in SPLITS if f"{split}_images" in names]
    masks = any(f"{split}_masks" in names for split in SPLITS)
    if masks and any(f"{split}_labels" in names for split in SPLITS):
        raise DataError(f"{path} has labels and masks; keep one of them. Its arrays are {_listed(names)}")
    for split in SPLITS:
        for kind in ("images", "masks" if masks else "labels"):
            if f"{split}_{kind}" not in names and names & {f"{split}_{other}" for other in KINDS}:
                raise DataError(f"{path}: there is no {split}_{kind}; its arrays are {_listed(names)}")
    if not splits:
        raise DataError(f"{path}: there is no train_images, val_images or test_images; its arrays are {_listed(names)}")
    return splits


def _wanted(splits: list[str], names: set[str]) -> list[str]:
    every = [f"{split}_{kind}" for split in splits for kind in KINDS] + ["classes"]
    return [name for name in every if name in names]


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)[:12]) or "none"


def _class_names(archive: zipfile.ZipFile, path: Path) -> tuple[str, ...]:
    found = _load(archive, "classes", path)
    if found.ndim != 1 or found.dtype.kind not in "US" or len(found) > label_rules.MAX_CLASSES:
        raise DataError(f"{path}: classes has type {found.dtype} and shape {list(found.shape)}; it must be [K] strings")
    words = found.astype(str).tolist()
    if len(set(words)) != len(words) or not all(word.strip() for word in words):
        raise DataError(f"{path}: classes has an empty name or a name twice: {', '.join(words)}")
    return tuple(words)


def _known_names(numbers: dict[str, np.ndarray], section: DataSection, path: Path) -> tuple[str, ...] | None:
    count = max(int(part.max()) + 1 for part in numbers.values())
    if path.stem.lower().startswith("bloodmnist") and count == len(BLOOD_CELLS) and section.classes is None:
        return BLOOD_CELLS
    return None


def _inspect(archive: zipfile.ZipFile, name: str, path: Path) -> _Member:
    """Read only the header of an array. Nothing is unpacked before, because a zip file of a few kilobytes can unpack to
    terabytes."""
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as handle:
        try:
            member = _header(handle)
        except (ValueError, SyntaxError, TypeError) as error:
            raise DataError(f"{path}: the array {name} is damaged: {error}") from None
        start = handle.tell()
    if member.dtype.hasobject:
        raise DataError(
            f"{path}: {name} holds Python objects, which are not read because unpickling them can run code; "
            "save it as a plain array of numbers (or of fixed-width strings, for classes)"
        )
    if start + member.nbytes != info.file_size:
        raise DataError(
            f"{path}: {name} is damaged: it claims {member.nbytes:,} bytes ({list(member.shape)} {member.dtype}), but the file "
            f"has {info.file_size - start:,} bytes for it"
        )
    if not name.endswith("_images") and member.nbytes > free_memory() / 2:
        raise DataError(f"{path}: {name} claims {member.nbytes:,} bytes, more than half of the free memory")
    return member


def _header(handle: IO[bytes]) -> _Member:
    version = np.lib.format.read_magic(handle)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = reader(handle)
    if any(length < 0 for length in shape):
        raise ValueError(f"it has the shape {list(shape)}")
    return _Member(shape, dtype)


def _load(archive: zipfile.ZipFile, name: str, path: Path) -> np.ndarray:
    try:
        with archive.open(f"{name}.npy") as handle:
            return np.lib.format.read_array(handle, allow_pickle=False)
    except (ValueError, MemoryError) as error:
        raise DataError(f"{path}: the array {name} cannot be read: {error}") from None


def _map(archive: zipfile.ZipFile, name: str, path: Path) -> np.ndarray:
    """Unpack an array to the cache in pieces, and map it."""
    info = archive.getinfo(f"{name}.npy")
    key = cache.make_key("member", cache.contents([path], str(path)).values[0], name)

    def store() -> None:
        folder = cache.cache_dir()
        if info.file_size > (free := shutil.disk_usage(folder).free):
            raise PetriscopeError(
                f"{path}: {name} takes {info.file_size / 2**30:.1f} GiB when unpacked, and {folder} has {free / 2**30:.1f} GiB; "
                "free some space, or set PETRISCOPE_CACHE to a folder with more"
            )
        cache.store_stream(key, _pieces(archive, info))

    return cache.fetch_or_store(key, True, store)[0]


def _pieces(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    with archive.open(info) as handle:
        while piece := handle.read(COPY_BYTES):
            yield piece
