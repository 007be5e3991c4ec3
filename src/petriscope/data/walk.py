"""The one walk through a folder of images: which files are images, and what is left out."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from petriscope.core.errors import DataError
from petriscope.data.decode import ARRAY, SUFFIXES
from petriscope.data.omissions import LeftOut

# Folders that systems and network drives make, in lower case. Folders whose names begin with a dot are left out too.
SYSTEM = frozenset(
    [
        "@eadir",
        "@recently-snapshot",
        "@recycle",
        "@tmp",
        "@__thumb",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "__macosx",
        "__pycache__",
        "found.000",
        "lost+found",
        "network trash folder",
        "recycler",
        "system volume information",
        "temporary items",
        "thumbnails",
        "_thumbnails",
        "_thumbs",
    ]
)
IMAGES = frozenset([*SUFFIXES, ARRAY])
SYSTEM_FILES = frozenset(["desktop.ini", "ehthumbs.db", "icon\r", "thumbs.db"])
MAX_DEPTH = 50


@dataclass(eq=False)
class Folder:
    """A folder with what it holds, sorted by name. What the walk left out is not in it.

    Args:
        path: of the folder.
        id: its path below the source, with forward slashes; empty for the source itself.
        images: the names of its image files, readable or not. Files with an array are not among them if others are, because
            beside images they mostly hold outlines or features of these.
        others: the names of its other files.
        folders: its subfolders.
    """

    path: Path
    id: str
    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    folders: list[Folder] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def count(self) -> int:
        """The number of images in it and below it."""
        return len(self.images) + sum(folder.count for folder in self.folders)

    @property
    def filled(self) -> list[Folder]:
        """The subfolders with images in or below them."""
        return [folder for folder in self.folders if folder.count]

    def all(self) -> Iterator[Folder]:
        """This folder and all below it."""
        yield self
        for folder in self.folders:
            yield from folder.all()

    def id_of(self, name: str) -> str:
        """The path of one of its files below the source."""
        return f"{self.id}/{name}" if self.id else name


def suffix_of(name: str) -> str:
    """The suffix of a file in lower case, with its dot; empty if it has none."""
    return name[len(stem_of(name)) :].lower()


def stem_of(name: str) -> str:
    """The name of a file without its suffix. A path for each of many files would take longer than to find them."""
    dot = name.rfind(".")
    return name[:dot] if 0 < dot < len(name) - 1 else name


def walk(source: Path, left_out: LeftOut) -> Folder:
    """Read a folder and all below it. Links to folders are followed, except those that lead back into the source.

    Raises:
        DataError: a folder cannot be read, or folders are nested more than `MAX_DEPTH` deep.
    """
    return _walk(Folder(source, ""), (source.resolve(),), 0, left_out)


def each_folder(source: Path, left_out: LeftOut) -> Iterator[Folder]:
    """The folders of `walk` one after the other, without their subfolders, so that memory does not grow with their number. The
    images of a folder come before those of its subfolders, both in the order of their names."""
    waiting: list[tuple[Folder, tuple[Path, ...], int]] = [(Folder(source, ""), (source.resolve(),), 0)]
    while waiting:
        folder, trees, depth = waiting.pop()
        inner = list[tuple[Folder, tuple[Path, ...]]]()
        _scan(folder, trees, depth, left_out, lambda *below: inner.append(below))  # noqa: B023
        waiting += [(*below, depth + 1) for below in reversed(inner)]
        yield folder


def tree_of(source: Path, files: Iterable[str], folders: Iterable[str], left_out: LeftOut) -> Folder:
    """`walk` for what is not in a folder, such as an archive.

    Args:
        source: what the paths of folders begin with.
        files, folders: paths below it, with forward slashes, each once. The folders that they are in need not be listed.

    Raises:
        DataError: folders are nested more than `MAX_DEPTH` deep, or a file has the path of a folder.
    """
    root: _Names = {}
    for name in files:
        *parts, last = name.split("/")
        if _enter(root, parts, source).setdefault(last, None) is not None:
            raise DataError(f"{source} has {name} as a file and as a folder; keep one of them")
    for name in folders:
        _enter(root, name.split("/"), source)
    return _grow(source, "", root, left_out)


_Names: TypeAlias = "dict[str, _Names | None]"  # what is in a folder, by name; None: a file


def _enter(root: _Names, parts: Sequence[str], source: Path) -> _Names:
    """What is in the folder at ``parts`` below ``root``."""
    if len(parts) > MAX_DEPTH:
        raise DataError(f"{source} is nested more than {MAX_DEPTH} folders deep; pack a folder nearer to the images")
    for part in parts:
        below = root.setdefault(part, {})
        if below is None:
            raise DataError(f"{source} has {'/'.join(parts)} as a file and as a folder; keep one of them")
        root = below
    return root


def _grow(path: Path, name: str, names: _Names, left_out: LeftOut) -> Folder:
    out = Folder(path, name)
    for each, inner in sorted(names.items()):
        below = out.id_of(each)
        if inner is None:
            add_name(out, each, left_out)
        elif is_left_out(each):
            left_out.add("hidden or system folder{s}", below)
        else:
            out.folders.append(_grow(path / each, below, inner, left_out))
    if not are_arrays(out.images):
        _set_apart(out)
    return out


def are_arrays(names: Iterable[str]) -> bool:
    """Whether all of these image files are called as those that have an array."""
    return all(_is_array(name) for name in names)


def set_arrays_apart(tree: Folder, shards: bool = False) -> None:
    """Count files with an array among those that are no images, if a folder, or one below it, has image files of another kind.

    Args:
        shards: the folder has files that images are stored in, so that the arrays are something else too.
    """
    if shards or not all(are_arrays(folder.images) for folder in tree.all()):
        for folder in tree.all():
            _set_apart(folder)


def _is_array(name: str) -> bool:
    return name[-len(ARRAY) :].lower() == ARRAY


def _set_apart(folder: Folder) -> None:
    if arrays := [name for name in folder.images if _is_array(name)]:
        folder.images = [name for name in folder.images if not _is_array(name)]
        folder.others = sorted([*folder.others, *arrays])
    folder.__dict__.pop("count", None)


def count_others(folder: Folder, left_out: LeftOut, used: Collection[str] = ()) -> None:
    """Count the files in a folder and below it that are no images, except those with a name in ``used``."""
    for part in folder.all():
        for name in part.others:
            if name not in used:
                suffix = suffix_of(name)
                left_out.add(f"{suffix} file{{s}}" if suffix else "file{s} without a suffix", part.id_of(name))


def _walk(folder: Folder, trees: tuple[Path, ...], depth: int, left_out: LeftOut) -> Folder:
    def enter(below: Folder, trees: tuple[Path, ...]) -> None:
        folder.folders.append(_walk(below, trees, depth + 1, left_out))

    _scan(folder, trees, depth, left_out, enter)
    return folder


def _scan(
    folder: Folder,
    trees: tuple[Path, ...],
    depth: int,
    left_out: LeftOut,
    enter: Callable[[Folder, tuple[Path, ...]], object],
) -> None:
    """Add the files of a folder; ``enter`` takes each of its subfolders, and the trees that this is in."""
    path = folder.path
    if depth > MAX_DEPTH:
        raise DataError(f"{path} is nested more than {MAX_DEPTH} folders deep; name a folder nearer to the images")
    try:
        with os.scandir(path) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"the folder {path} cannot be read: {error.strerror or error}") from None
    for entry in entries:
        if not _is_folder(entry):
            _add_file(folder, entry, left_out)
            continue
        below = folder.id_of(entry.name)
        if is_left_out(entry.name):
            left_out.add("hidden or system folder{s}", below)
        elif not entry.is_symlink():
            enter(Folder(path / entry.name, below), trees)
        elif _leads_back(target := (path / entry.name).resolve(), trees):
            left_out.add("link{s} to folders of the source itself", below)
        else:
            enter(Folder(path / entry.name, below), (*trees, target))
    if not are_arrays(folder.images):
        _set_apart(folder)


def _add_file(folder: Folder, entry: os.DirEntry[str], left_out: LeftOut) -> None:
    add_name(folder, entry.name, left_out)
    if entry.name in folder.others[-1:] and entry.is_symlink() and not Path(entry.path).exists():
        folder.others.pop()
        left_out.add("broken link{s}", folder.id_of(entry.name))


def add_name(folder: Folder, name: str, left_out: LeftOut) -> None:
    """Add a file to a folder."""
    dot = name.rfind(".")
    if dot > 0 and name[0] != "." and name[dot:].lower() in IMAGES:  # first, since most names are such ones
        folder.images.append(name)
    elif name.startswith(".") or name.lower() in SYSTEM_FILES:
        left_out.add("hidden or system file{s}", folder.id_of(name))
    else:
        folder.others.append(name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def is_left_out(name: str) -> bool:
    """Whether a folder of this name is."""
    return name.startswith(".") or name.lower() in SYSTEM


def _leads_back(target: Path, trees: tuple[Path, ...]) -> bool:
    """Whether a linked folder is walked anyway, or holds a folder that is being walked."""
    for tree in trees:
        if tree.is_relative_to(target):
            return True
        if target.is_relative_to(tree) and not any(map(is_left_out, target.relative_to(tree).parts)):
            return True
    return False
