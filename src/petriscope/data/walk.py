"""The one walk through a folder of images: which files are images, and what is left out."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from petriscope.core.errors import DataError
from petriscope.data.decode import SUFFIXES

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
SYSTEM_FILES = frozenset(["desktop.ini", "ehthumbs.db", "icon\r", "thumbs.db"])
MAX_DEPTH = 50
SHOWN = 6  # kinds of what was left out that a sentence names


class LeftOut:
    """What a walk left out: how many of each kind, and the first of them."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[int, str]] = {}

    def add(self, kind: str, name: str, count: int = 1) -> None:
        """
        Args:
            kind: a noun, with ``{s}`` where the plural has an s.
            name: the path of one below the source.
        """
        so_far, first = self._kinds.get(kind, (0, name))
        self._kinds[kind] = (so_far + count, first)

    def __bool__(self) -> bool:
        return bool(self._kinds)

    def sentences(self, source: Path) -> list[str]:
        """One sentence for the user, or none."""
        return [f"{source}: left out {self.listed()}"] if self else []

    def listed(self) -> str:
        """The kinds with their counts and the first of each."""
        kinds = sorted(self._kinds.items(), key=lambda item: -item[1][0])
        parts = [
            f"{count:,} {kind.replace('{s}', '' if count == 1 else 's')} ({first})"
            for kind, (count, first) in kinds[:SHOWN]
        ]
        if rest := kinds[SHOWN:]:
            parts.append(f"{sum(count for _, (count, _) in rest):,} others ({rest[0][1][1]})")
        return ", ".join(parts)


@dataclass(eq=False)
class Folder:
    """A folder with what it holds, sorted by name. What the walk left out is not in it.

    Args:
        path: of the folder.
        id: its path below the source, with forward slashes; empty for the source itself.
        images: the names of its image files, readable or not.
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
    return _walk(source, "", (source.resolve(),), 0, left_out)


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
            _add_name(out, each, below, left_out)
        elif _is_left_out(each):
            left_out.add("hidden or system folder{s}", below)
        else:
            out.folders.append(_grow(path / each, below, inner, left_out))
    return out


def count_others(folder: Folder, left_out: LeftOut, used: Collection[str] = ()) -> None:
    """Count the files in a folder and below it that are no images, except those with a name in ``used``."""
    for part in folder.all():
        for name in part.others:
            if name not in used:
                suffix = suffix_of(name)
                left_out.add(f"{suffix} file{{s}}" if suffix else "file{s} without a suffix", part.id_of(name))


def _walk(path: Path, name: str, trees: tuple[Path, ...], depth: int, left_out: LeftOut) -> Folder:
    if depth > MAX_DEPTH:
        raise DataError(f"{path} is nested more than {MAX_DEPTH} folders deep; name a folder nearer to the images")
    out = Folder(path, name)
    try:
        with os.scandir(path) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"the folder {path} cannot be read: {error.strerror or error}") from None
    for entry in entries:
        below = out.id_of(entry.name)
        if not _is_folder(entry):
            _add_file(out, entry, below, left_out)
        elif _is_left_out(entry.name):
            left_out.add("hidden or system folder{s}", below)
        elif not entry.is_symlink():
            out.folders.append(_walk(path / entry.name, below, trees, depth + 1, left_out))
        elif _leads_back(target := (path / entry.name).resolve(), trees):
            left_out.add("link{s} to folders of the source itself", below)
        else:
            out.folders.append(_walk(path / entry.name, below, (*trees, target), depth + 1, left_out))
    return out


def _add_file(folder: Folder, entry: os.DirEntry[str], below: str, left_out: LeftOut) -> None:
    _add_name(folder, entry.name, below, left_out)
    if entry.name in folder.others[-1:] and entry.is_symlink() and not Path(entry.path).exists():
        folder.others.pop()
        left_out.add("broken link{s}", below)


def _add_name(folder: Folder, name: str, below: str, left_out: LeftOut) -> None:
    if name.startswith(".") or name.lower() in SYSTEM_FILES:
        left_out.add("hidden or system file{s}", below)
    elif suffix_of(name) in SUFFIXES:
        folder.images.append(name)
    else:
        folder.others.append(name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def _is_left_out(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM


def _leads_back(target: Path, trees: tuple[Path, ...]) -> bool:
    """Whether a linked folder is walked anyway, or holds a folder that is being walked."""
    for tree in trees:
        if tree.is_relative_to(target):
            return True
        if target.is_relative_to(tree) and not any(map(_is_left_out, target.relative_to(tree).parts)):
            return True
    return False
