"""What holds many images: folders of image files, tar files and Parquet files, on the disk or at an address. They are listed one
after the other, and nothing is read of them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, NamedTuple, cast

from petriscope.core.errors import RequestError
from petriscope.core.files import readable, user_path
from petriscope.data.omissions import LeftOut
from petriscope.data.sources import parquet_images, remote, webdataset
from petriscope.data.walk import Folder, add_name, count_others, each_folder, is_left_out, set_arrays_apart

Kind = Literal["image", "tar", "table"]
NAMES: dict[Kind, str] = {"image": "image files", "tar": "tar file{s}", "table": "Parquet file{s}"}
PIECE_BYTES = 1 << 23  # read at a time from an address


class Holder(NamedTuple):
    """A file that is an image or holds some.

    Args:
        path: in bytes, since names of files need not be text.
        info: what the file system of an address says of it; None: it was not asked.
    """

    kind: Kind
    path: bytes
    info: dict[str, Any] | None = None

    @property
    def size(self) -> int:
        """In bytes; -1: not known."""
        return -1 if self.info is None else int(self.info.get("size") or 0)


def kind_of(name: str) -> Kind | None:
    """What a file that is no image may hold."""
    lower = name.lower()
    return "tar" if lower.endswith(webdataset.SHARDS) else "table" if lower.endswith(parquet_images.SUFFIXES) else None


@dataclass(frozen=True)
class Source:
    """Where images are: a file or a folder on the disk, or an address.

    Args:
        name: as the user gave it, with the full path.
    """

    name: str

    @classmethod
    def given(cls, text: str) -> Source:
        """
        Raises:
            RequestError: there is nothing of that name.
        """
        if remote.is_address(text):
            return cls(text)
        if webdataset.is_pattern(text):
            webdataset.expand(text)  # refused if one is missing
            return cls(str(user_path(text).absolute()))
        path = user_path(text).absolute()
        if not path.exists():
            raise RequestError(f"no such image, file of images, folder or address: {text}")
        return cls(str(path))

    @cached_property
    def _at_address(self) -> tuple[Any, str] | None:
        return remote.open_system(self.name) if remote.is_address(self.name) else None

    def shown(self, path: bytes) -> str:
        """The name of a file, for messages and tables."""
        text = os.fsdecode(path)
        if self._at_address is None:
            return readable(text)
        return str(self._at_address[0].unstrip_protocol(text))

    def open(self, path: bytes) -> IO[bytes]:
        if self._at_address is None:
            return Path(os.fsdecode(path)).open("rb")
        found = self._at_address[0].open(os.fsdecode(path), "rb", block_size=PIECE_BYTES, cache_type="readahead")
        return cast(IO[bytes], found)

    def look(self, path: bytes) -> tuple[int, str]:
        """The size and the stamp of a file."""
        if self._at_address is None:
            found = Path(os.fsdecode(path)).stat()
            return found.st_size, f"{found.st_size} {found.st_mtime_ns}"
        info = self._at_address[0].info(os.fsdecode(path))
        return int(info.get("size") or 0), " ".join(remote.stamp_of(info) or [])

    def load(self, path: bytes) -> bytes:
        """The content of a file at an address."""
        assert self._at_address is not None
        return bytes(self._at_address[0].cat_file(os.fsdecode(path)))

    @property
    def is_remote(self) -> bool:
        return self._at_address is not None

    @cached_property
    def is_folder(self) -> bool:
        if webdataset.is_pattern(self.name):
            return False
        if self._at_address is None:
            return Path(self.name).is_dir()
        system, root = self._at_address
        with remote.reading(self.name):
            return not system.isfile(root)

    def chosen(self, left_out: LeftOut, used: Collection[str] = (), arrays: bool = True) -> Iterator[Holder]:
        """The files that images are read from: a file that was named, and is taken for an image unless its name says more; or, of
        a folder, its image files alone if it has any, else its tar files, else its Parquet files.

        Args:
            left_out: counts all else at the end, except files with a name in ``used``.
            arrays: whether files with the array of one image are image files, where no others and no shards are beside them.

        Raises:
            PetriscopeError: it cannot be listed.
        """
        others: dict[Kind, list[Holder]] = {"tar": [], "table": []}
        images = 0
        for holder in self._files(left_out, used, arrays):
            if holder.kind == "image":
                images += 1
                yield holder
            else:
                others[holder.kind].append(holder)
        kind: Kind = "image" if images else "tar" if others["tar"] else "table"
        for each, found in others.items():
            if found and each != kind:
                left_out.add(
                    f"{NAMES[each]} beside {NAMES[kind].replace('{s}', 's')}", self.shown(found[0].path), len(found)
                )
        yield from others.get(kind, [])

    def _files(self, left_out: LeftOut, used: Collection[str], arrays: bool) -> Iterator[Holder]:
        if webdataset.is_pattern(self.name):
            if self._at_address is None:
                names = [os.fspath(path) for path in webdataset.expand(self.name)]
            else:
                names = webdataset.expanded(self._at_address[1])
            yield from (Holder("tar", os.fsencode(name)) for name in names)
        elif not self.is_folder:
            path = self.name if self._at_address is None else self._at_address[1]
            yield Holder(kind_of(PurePosixPath(path).name) or "image", os.fsencode(path))
        else:
            for folder, infos in self._folders(left_out):
                set_arrays_apart(folder, shards=not arrays or any(map(kind_of, folder.others)))
                others = []
                for name in folder.images:
                    place = os.path.join(os.fsencode(folder.path), os.fsencode(name))  # noqa: PTH118 (bytes)
                    yield Holder("image", place, infos.get(name))
                for name in folder.others:
                    if (kind := kind_of(name)) is None:
                        others.append(name)
                    else:
                        yield Holder(kind, os.fsencode(folder.path / name), infos.get(name))
                folder.others = others
                count_others(folder, left_out, used)

    def _folders(self, left_out: LeftOut) -> Iterator[tuple[Folder, dict[str, dict[str, Any]]]]:
        """The folders one after the other, as `petriscope.data.walk.each_folder` gives them, and what is known of their files."""
        if self._at_address is None:
            yield from ((folder, {}) for folder in each_folder(Path(self.name), left_out))
            return
        system, root = self._at_address
        with remote.reading(self.name):
            system.invalidate_cache()
            for place, folders, files in system.walk(root, detail=True):
                system.dircache.clear()  # or else all that was listed stays in memory
                below = str(place)[len(root) :].strip("/")
                folder = Folder(Path(place), below)
                for name in sorted(name for name in files if name):  # some stores have an object for a folder
                    add_name(folder, name, left_out)
                inner = sorted(folders.items())
                folders.clear()  # which says where the walk goes on
                for name, info in inner:
                    if is_left_out(name):
                        left_out.add("hidden or system folder{s}", folder.id_of(name))
                    else:
                        folders[name] = info
                yield folder, files
