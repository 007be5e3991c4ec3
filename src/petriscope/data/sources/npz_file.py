"""The arrays in an npz file, read without pickle. Whatever is wrong with the file is a `DataError`."""

from __future__ import annotations

import ast
import math
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from petriscope.core.device import free_memory
from petriscope.core.errors import DataError, PetriscopeError
from petriscope.core.files import parsing
from petriscope.data import cache
from petriscope.data.imageset import SPLITS

PIECE_BYTES = 1 << 22
MAX_HEADER = 10_000
MAX_AXES = 4
BOMB_BYTES, BOMB_RATIO = 1 << 30, 800  # what unpacks to more than both is no image data
END_BYTES = 22  # of a zip file: its end record, if it has no comment
NPY = b"\x93NUMPY"
TYPE = re.compile(r"[<>|=]?[biufcSUVmM]\d+(\[\w+\])?")  # of an array whose elements are single values


@dataclass(frozen=True)
class Member:
    """The header of an array, checked against the directory of the file.

    Args:
        start: the length of the header.
        fortran: whether the first axis, not the last, is the fastest in the file.
    """

    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    start: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


# What Keras calls the arrays of its data sets, in lower case.
KERAS = {
    f"{letter}_{name}": f"{split}_{kind}"
    for split, names in (("train", ("train",)), ("val", ("val", "valid")), ("test", ("test",)))
    for name in names
    for letter, kind in (("x", "images"), ("y", "labels"))
}


class NpzFile:
    """An open npz file; a context manager.

    Args:
        names: of the arrays.
        others: the names of the other files in it.
        splits: those that its arrays may be called after.

    Raises:
        DataError: it is no zip file, is damaged, or has two arrays of one name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._reading():
            with path.open("rb") as handle:
                begin = handle.read(len(NPY))
                handle.seek(max(handle.seek(0, 2) - END_BYTES, 0))
                end = handle.read(END_BYTES)
                if begin == NPY:
                    raise DataError(
                        f"{path} is an npy file, with one array; save images and labels with numpy.savez(PATH, train_images=..., "
                        "train_labels=...)"
                    )
            self.archive = zipfile.ZipFile(path)
            every = self.archive.infolist()
            counted = int.from_bytes(end[10:12], "little")  # which zipfile does not compare
            if end.startswith(b"PK\5\6") and counted not in (len(every), 0xFFFF):
                raise ValueError(f"it lists {len(every)} of {counted} arrays")
            entries = [info for info in every if not info.is_dir()]
        self.splits: tuple[str, ...] = SPLITS
        self._infos = {info.filename.removesuffix(".npy"): info for info in entries if info.filename.endswith(".npy")}
        if not any(name.endswith("_images") for name in self._infos):
            named = {KERAS.get(name.lower(), name): info for name, info in self._infos.items()}
            self._infos = named if len(named) == len(self._infos) else self._infos
        self.names = set(self._infos)
        self.others = [info.filename for info in entries if not info.filename.endswith(".npy")]
        if len(self._infos) + len(self.others) < len(entries):
            known = [info.filename for info in entries]
            twice = next(name for name in known if known.count(name) > 1)
            raise DataError(f"{path} has {twice.removesuffix('.npy')} twice; save it again with one")

    def __enter__(self) -> NpzFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.archive.close()

    def inspect(self, name: str) -> Member:
        """Read only the header of an array. Nothing is unpacked before, because a zip file of a few kilobytes can unpack to
        terabytes.

        Raises:
            DataError: the header is damaged or claims another size than the file has; or the array holds Python objects or
                records.
        """
        info = self._infos[name]
        with self._reading(name), self.archive.open(info) as handle:
            text, start = _header(handle)
        try:
            fields = ast.literal_eval(re.sub(r"(\d)L\b", r"\1", text))  # Python 2 wrote 3L
            described, fortran, shape = (fields[key] for key in ("descr", "fortran_order", "shape"))
            if isinstance(described, str) and described.lstrip("<>|=").startswith("O"):
                raise DataError(
                    f"{self.path}: {name} holds Python objects, which are not read because unpickling them can run code; "
                    "save it as a plain array of numbers (or of fixed-width strings, for classes)"
                )
            if isinstance(described, list) or (isinstance(described, str) and not TYPE.fullmatch(described)):
                raise DataError(f"{self.path}: {name} has the type {described}; save it as a plain array of one type")
            dtype = np.dtype(described)
            whole = isinstance(shape, tuple) and all(type(length) is int and length >= 0 for length in shape)
            if not whole or type(fortran) is not bool or not isinstance(described, str):
                raise ValueError("its header does not describe an array")
        except DataError:
            raise
        except Exception:  # literal_eval and numpy raise many kinds on damaged text
            raise DataError(
                f"{self.path}: the array {name} is damaged: its header cannot be parsed; save it again"
            ) from None
        member = Member(info, shape, dtype, fortran, start)
        if len(shape) > MAX_AXES:
            raise DataError(f"{self.path}: {name} has the shape {list(shape)}; no array has more than {MAX_AXES} axes")
        if start + member.nbytes != info.file_size:
            raise DataError(
                f"{self.path}: {name} is damaged: it claims {member.nbytes:,} bytes ({list(shape)} {dtype}), but the file "
                f"has {info.file_size - start:,} bytes for it"
            )
        if member.nbytes > BOMB_BYTES and member.nbytes > BOMB_RATIO * info.compress_size:
            raise DataError(
                f"{self.path}: {name} unpacks from {info.compress_size:,} to {member.nbytes:,} bytes, which no images do; save "
                "it without compression if it is meant to be so"
            )
        return member

    def load(self, name: str) -> np.ndarray:
        """Unpack an array into memory.

        Raises:
            DataError: it is damaged, or takes more than the free memory.
        """
        member = self.inspect(name)
        if member.nbytes > (free := free_memory()):
            raise DataError(f"{self.path}: {name} takes {member.nbytes:,} bytes, and {free:,} bytes of memory are free")
        if not member.nbytes:
            return np.zeros(member.shape, member.dtype)
        buffer, filled = np.empty(member.nbytes, dtype=np.uint8), 0
        for piece in self._pieces(name, member):
            buffer[filled : filled + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
            filled += len(piece)
        return np.ndarray(member.shape, member.dtype, buffer, order="F" if member.fortran else "C")

    def map(self, name: str) -> np.ndarray:
        """Unpack an array of numbers to the cache, and map it.

        Raises:
            DataError: it is damaged.
            PetriscopeError: the disk of the cache is full.
        """
        member = self.inspect(name)
        if member.dtype.kind not in "biuf":
            return self.load(name)  # to be refused by its type
        key = cache.make_key("member", cache.contents([self.path], str(self.path)).values[0], name)

        def store() -> None:
            folder = cache.cache_dir()
            if member.nbytes > (free := shutil.disk_usage(folder).free):
                raise PetriscopeError(
                    f"{self.path}: {name} takes {member.nbytes / 2**30:.1f} GiB when unpacked, and {folder} has "
                    f"{free / 2**30:.1f} GiB; free some space, or set PETRISCOPE_CACHE to a folder with more"
                )
            pieces = (np.frombuffer(piece, dtype=member.dtype) for piece in self._pieces(name, member))
            cache.store(key, member.shape[:: -1 if member.fortran else 1], member.dtype, pieces)

        array = cache.fetch_or_store(key, True, store)[0]
        return array.T if member.fortran else array

    def texts(self, name: str) -> np.ndarray:
        """Unpack an array of names, or of whole numbers that are names, and spell them as strings [...].

        Raises:
            DataError: it is damaged or of another type, or a name is not valid text.
        """
        array = self.load(name)
        if (
            array.dtype.kind == "f"
            and np.array_equal(array, np.rint(array))
            and np.abs(array.astype(np.float64)).max(initial=0) < 2**53
        ):
            array = array.astype(np.int64)
        if array.dtype.kind not in "USiub":
            raise DataError(f"{self.path}: {name} has type {array.dtype}; save it as strings")
        try:
            words = [each.decode() if isinstance(each, bytes) else str(each) for each in array.reshape(-1).tolist()]
            for word in words:
                word.encode()
        except ValueError:
            raise DataError(
                f"{self.path}: {name} has a name that is not UTF-8; save the names as str, not bytes"
            ) from None
        return np.array(words, dtype=str).reshape(array.shape)

    def _pieces(self, name: str, member: Member) -> Iterator[bytes]:
        """The bytes of an array after its header; the checksum of the file is compared at the end."""
        with self._reading(name), self.archive.open(member.info) as handle:
            handle.read(member.start)
            left = member.nbytes
            while piece := handle.read(PIECE_BYTES - PIECE_BYTES % max(member.dtype.itemsize, 1)):
                left -= len(piece)
                if left < 0:
                    break
                yield piece
            if left:
                raise DataError(f"{self.path}: the array {name} is damaged: it is shorter or longer than it claims")

    def _reading(self, name: str = "") -> AbstractContextManager[None]:
        place = f"{self.path}: the array {name}" if name else self.path
        return parsing(place, "copy or download it again", DataError)


def _header(handle: IO[bytes]) -> tuple[str, int]:
    """The text of the header of an npy file, and its length in bytes."""
    start = handle.read(len(NPY) + 2)
    if not start.startswith(NPY) or len(start) < len(NPY) + 2:
        raise ValueError("it does not begin as an npy file")
    width = 2 if start[-2] == 1 else 4
    length = int.from_bytes(handle.read(width), "little")
    if length > MAX_HEADER:
        raise ValueError(f"its header has {length:,} bytes")
    text = handle.read(length)
    if len(text) < length:
        raise ValueError("it ends within its header")
    return text.decode("utf-8" if start[-2] >= 3 else "latin1"), len(start) + width + length
