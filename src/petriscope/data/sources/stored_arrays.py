"""Arrays in HDF5 files (h5py) and Zarr folders (zarr), in the layouts of npz files or as one pair of images and labels."""

from __future__ import annotations

import json
import math
import warnings as library_warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from petriscope.core.channels import MOST
from petriscope.core.device import free_memory
from petriscope.core.errors import DataError, PetriscopeError, RequestError, near
from petriscope.core.files import parsing
from petriscope.core.recipe import DataSection
from petriscope.data import cache
from petriscope.data.imageset import SPLITS, ImageSet
from petriscope.data.sources import npz
from petriscope.data.sources.spelling import split_of

HDF5 = (".h5", ".hdf5", ".hdf", ".he5")
ZARR = ("zarr.json", ".zgroup", ".zarray")  # one of them is in the folder of every array or group
MAX_ARRAYS = 10_000
MAX_METADATA = 1 << 24
PIECE_BYTES = 1 << 24
REMEDY = "copy or download it again"
UNSPLIT = "all"


@dataclass(frozen=True)
class Header:
    """The shape and type of an array, with channels last."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def is_zarr(path: Path) -> bool:
    return any((path / name).is_file() for name in ZARR)


def read(path: Path, section: DataSection, warnings: list[str]) -> dict[str, ImageSet]:
    """Read arrays: ``train_images`` and ``train_labels``, also as ``train/images``, as in an npz file; or ``images`` and
    ``labels``, or those that ``section.image`` and ``section.label`` name, or the only ones that fit.

    Args:
        path: a file of HDF5 or a folder of Zarr.
        section: ``layout`` says which axis has the channels where both may.

    Raises:
        RequestError: the library is not installed, or it cannot be told which arrays are meant.
        DataError: the file is damaged, or the arrays do not fit together.
    """
    with _opened(path, warnings) as (arrays, digest):
        names, found = _roles(arrays, section, path, warnings)
        stored = StoredArrays(path, {role: arrays[name] for role, name in names.items()}, section, digest)
        stored.splits = (UNSPLIT,) if f"{UNSPLIT}_images" in names else SPLITS
        stored.others = [name for name in arrays if name not in names.values()] if found else []
        notes: list[str] = []
        try:
            sets = npz.read_arrays(stored, path, section, notes)
        except PetriscopeError as error:
            raise type(error)(_renamed(str(error), names)) from None
        warnings += [_renamed(note, names) for note in notes]
    return sets


def _renamed(text: str, names: Mapping[str, str]) -> str:
    """A sentence with the names that the file has for its arrays."""
    for role, name in names.items():
        text = text.replace(role, name)
    return text


@contextmanager
def _opened(path: Path, warnings: list[str]) -> Iterator[tuple[dict[str, Any], str]]:
    """The arrays of a file or folder, by name, and a digest of its bytes."""
    if path.is_dir():
        with parsing(path, REMEDY, DataError):
            yield _open_zarr(path, warnings)
        return
    try:
        import h5py
    except ImportError:
        raise RequestError(f"{path} needs h5py; install it with: pip install 'petriscope[hdf5]'") from None
    digest = cache.contents([path], f"{path.absolute()} as arrays").values[0]
    if not digest:
        raise DataError(f"{path} cannot be read; is it a file that may be read?")
    with parsing(path, REMEDY, DataError), h5py.File(path, "r") as file:
        arrays: dict[str, Any] = {}

        def note(name: str, each: Any) -> None:
            if isinstance(each, h5py.Dataset):
                if each.external or each.is_virtual:
                    raise DataError(f"{path}: {name} is stored in other files; copy it into one file")
                arrays[name] = each
            if len(arrays) > MAX_ARRAYS:
                raise DataError(
                    f"{path} has more than {MAX_ARRAYS:,} arrays; images are read from one array [N, H, W, C]"
                )

        file.visititems(note)
        yield arrays, digest


def _open_zarr(path: Path, warnings: list[str]) -> tuple[dict[str, Any], str]:
    try:
        import zarr
    except ImportError:
        raise RequestError(f"{path} needs zarr; install it with: pip install 'petriscope[zarr]'") from None
    files = sorted(each for each in path.rglob("*") if not each.is_dir())
    if odd := [file for file in files if not file.is_file()]:  # a named pipe would be waited for without end
        raise DataError(f"{odd[0]} is no regular file; {REMEDY}")
    for file in files:
        if file.name in (*ZARR, ".zmetadata", ".zattrs"):
            if file.stat().st_size > MAX_METADATA:
                raise DataError(f"{file} has {file.stat().st_size:,} bytes, which no metadata have")
            with parsing(file, REMEDY, DataError):
                if _names_pickle(json.loads(file.read_bytes())):
                    raise DataError(
                        f"{file} names pickle, which is not read because it can run code; save plain arrays"
                    )
    found = cache.contents(files, f"{path.absolute()} as arrays")
    with library_warnings.catch_warnings(record=True) as said:  # it warns of folders that are no arrays
        library_warnings.simplefilter("always")
        root = zarr.open(str(path), mode="r")
        if isinstance(root, zarr.Array):
            raise DataError(f"{path} is one array; store images and labels in one group")
        arrays: dict[str, Any] = {}
        _walk_zarr(root, "", arrays, zarr.Array, path)
    warnings += [f"{path}: {each.message}" for each in said]
    return arrays, cache.make_key(tuple(zip(map(str, files), found.values, strict=True)))


def _walk_zarr(group: Any, prefix: str, arrays: dict[str, Any], kind: type, path: Path, depth: int = 0) -> None:
    for name, each in sorted(group.members()):
        if len(arrays) > MAX_ARRAYS or depth > 10:
            raise DataError(f"{path} has more than {MAX_ARRAYS:,} arrays, or they are nested too deeply")
        if isinstance(each, kind):
            arrays[f"{prefix}{name}"] = each
        else:
            _walk_zarr(each, f"{prefix}{name}/", arrays, kind, path, depth + 1)


def _names_pickle(tree: Any) -> bool:
    if isinstance(tree, dict):
        return any(_names_pickle(each) for each in (*tree.keys(), *tree.values()))
    if isinstance(tree, list):
        return any(map(_names_pickle, tree))
    return isinstance(tree, str) and "pickle" in tree.lower()


def _roles(
    arrays: Mapping[str, Any], section: DataSection, path: Path, warnings: list[str]
) -> tuple[dict[str, str], bool]:
    """The name of the array in each role, such as ``train_images``; and whether the others are to be named."""
    if not arrays:
        raise DataError(f"{path} has no arrays")
    for key, wanted in (("image", section.image), ("label", section.label)):
        if wanted is not None and wanted not in arrays:
            raise RequestError(f"data.{key}: {path} has no array {wanted!r}; {near(wanted, arrays)}")
    out: dict[str, str] = {}
    if section.image is None and section.label is None:
        for name in arrays:
            first, _, kind = name.replace("/", "_").rpartition("_")
            split = split_of(first.rpartition("_")[2]) if kind in npz.KINDS else None
            if split is not None and (other := out.setdefault(f"{split}_{kind}", name)) != name:
                raise DataError(f"{path} has both {other} and {name}; keep one of them")
    if not out:
        image = section.image or _only(arrays, "images", lambda each: len(each.shape) in (3, 4), path, warnings)
        count = arrays[image].shape[:1]
        out[f"{UNSPLIT}_images"] = image
        if section.label is None and "masks" in arrays and "labels" not in arrays:
            out[f"{UNSPLIT}_masks"] = "masks"
        else:
            label = section.label or _only(
                {name: each for name, each in arrays.items() if name != image},
                "labels",
                lambda each: each.shape in (count, (*count, 1)) and np.dtype(each.dtype).kind in "iub",
                path,
                warnings,
            )
            out[f"{UNSPLIT}_labels"] = label
        if "groups" in arrays:
            out[f"{UNSPLIT}_groups"] = "groups"
    out |= {name: name for name in ("classes", "channels") if name in arrays}
    return out, True


def _only(arrays: Mapping[str, Any], usual: str, fits: Any, path: Path, warnings: list[str]) -> str:
    """The array of a usual name, or else the only one that fits."""
    if usual in arrays:
        return usual
    found = [name for name, each in arrays.items() if name != "groups" and fits(each)]
    if len(found) == 1:
        warnings.append(f"{path}: the {usual} were read from {found[0]}")
        return found[0]
    key = usual.removesuffix("s")
    which = (
        f"they may be {' or '.join(found[:6])}" if found else f"its arrays are {', '.join([*arrays][:12]) or 'none'}"
    )
    raise RequestError(f"{path} has no {usual}; {which}; choose with --set data.{key}=NAME")


class StoredArrays:
    """Arrays as `petriscope.data.sources.npz_file.NpzFile` has them, with channels last.

    Args:
        path: of the file.
        arrays: by their roles.
        section: its ``layout``.
        digest: of the bytes of the file.
    """

    splits: tuple[str, ...]
    others: list[str]

    def __init__(self, path: Path, arrays: Mapping[str, Any], section: DataSection, digest: str) -> None:
        self.path, self.arrays, self.layout, self.digest = path, arrays, section.layout, digest
        self.names = set(arrays)

    def inspect(self, name: str) -> Header:
        """
        Raises:
            DataError: the array holds Python objects or records.
            RequestError: either axis may have the channels.
        """
        array = self.arrays[name]
        dtype, shape = np.dtype(array.dtype), tuple(map(int, array.shape))
        if dtype.kind in "OT":  # strings of any length
            return Header(shape, np.dtype("U1"))
        if dtype.kind not in "biufSU":
            raise DataError(f"{self.path}: {name} has the type {dtype}; save it as a plain array of one type")
        if self._is_first(name):
            shape = (shape[0], *shape[2:], shape[1])
        return Header(shape, dtype)

    def load(self, name: str) -> np.ndarray:
        """Read an array into memory.

        Raises:
            DataError: it is damaged, or takes more than the free memory.
        """
        header = self.inspect(name)
        if header.nbytes > (free := free_memory()):
            raise DataError(f"{self.path}: {name} takes {header.nbytes:,} bytes, and {free:,} bytes of memory are free")
        return np.concatenate([np.empty((0, *header.shape[1:]), header.dtype), *self._pieces(name, header)])

    def map(self, name: str) -> np.ndarray:
        """Unpack an array of numbers to the cache, and map it."""
        header = self.inspect(name)
        if header.dtype.kind not in "biuf":
            return self.load(name)  # to be refused by its type
        key = cache.make_key("stored array", self.digest, name, header.shape)
        found = cache.fetch_or_store(
            key, True, lambda: cache.store(key, header.shape, header.dtype, self._pieces(name, header))
        )
        return found[0]

    def texts(self, name: str) -> np.ndarray:
        """Read an array of names, or of whole numbers that are names, as strings [...].

        Raises:
            DataError: it is damaged or of another type, or a name is not valid text.
        """
        array = self.arrays[name]
        if math.prod(array.shape) > 1 << 28:
            raise DataError(f"{self.path}: {name} has {math.prod(array.shape):,} names")
        values = np.asarray(array[...])
        if values.dtype.kind not in "OTUSiub":
            raise DataError(f"{self.path}: {name} has type {values.dtype}; save it as strings")
        try:
            words = [each.decode() if isinstance(each, bytes) else str(each) for each in values.reshape(-1).tolist()]
        except UnicodeDecodeError:
            raise DataError(f"{self.path}: {name} has a name that is not UTF-8") from None
        return np.array(words, dtype=str).reshape(values.shape)

    def _pieces(self, name: str, header: Header) -> Iterator[np.ndarray]:
        array, first = self.arrays[name], self._is_first(name)
        rows = max(1, PIECE_BYTES // max(header.nbytes // max(header.shape[0], 1), 1)) if header.shape else 1
        with parsing(f"{self.path}: {name}", REMEDY, DataError):
            for start in range(0, header.shape[0], rows):
                piece = np.asarray(array[start : start + rows])
                yield np.ascontiguousarray(np.moveaxis(piece, 1, 3) if first else piece)

    def _is_first(self, name: str) -> bool:
        """Whether the second axis of an array of images has the channels."""
        shape = self.arrays[name].shape
        if not name.endswith("_images") or len(shape) != 4:
            return False
        if self.layout != "auto":
            return self.layout == "channels-first"
        first, last = shape[1] in (1, 3), shape[3] in (1, 3)
        if not first and not last:
            first, last = shape[1] <= MOST, shape[3] <= MOST
        if first and last:
            raise RequestError(
                f"{self.path}: {name} has shape {list(shape)}; say which axis has the channels, with --set "
                "data.layout=channels-first or channels-last"
            )
        return first
