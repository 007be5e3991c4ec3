"""A folder of class folders, directly in the source or in a folder per split."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import numpy as np

from petriscope.core.errors import DataError
from petriscope.core.recipe import DataSection
from petriscope.data.decode import SUFFIXES, decode_files
from petriscope.data.imageset import ImageSet
from petriscope.data.sources.labels import index_names
from petriscope.data.sources.listing import ImageFile, rows_by_split, sets_over

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def read(path: Path, section: DataSection, warnings: list[str]) -> dict[str, ImageSet]:
    """Read images from class folders. Their ids are their paths below ``path``, with forward slashes.

    Args:
        path: a folder with class folders, or with the folders train, val (or valid, validation) and test that have them.
            Class folders may have subfolders. Hidden files, links to folders and other files are left out.
        section: its ``group`` is a pattern that is searched in the id. Images belong together if its first group, or the
            whole match, is the same.

    Raises:
        DataError: no images, an empty class folder, an unreadable image, an id that ``group`` does not match.
    """
    odd: Counter[str] = Counter()
    found = list_files(path, odd)
    files, names = [file.id for file in found], [file.label for file in found]
    if odd:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(odd.items()))
        warnings.append(f"{path} also has {kinds}, which were left out")

    groups = None if section.group is None else np.array([group_of(section.group, name) for name in files])
    decoded = decode_files([file.path for file in found], files, section, str(path))
    warnings += decoded.warnings
    rows = rows_by_split(decoded, [file.split for file in found])
    targets, classes = index_names(
        {split: [names[index] for index in indices] for split, indices in rows.items()}, section, str(path)
    )
    return sets_over(decoded, rows, targets, classes, files, groups)


def list_files(path: Path, odd: Counter[str] | None = None) -> list[ImageFile]:
    """The image files below ``path``, readable or not. What is left out is counted in ``odd``, by kind."""
    odd = Counter() if odd is None else odd
    return [
        ImageFile(name, path / name, split, label)
        for split, folder in _split_folders(path, odd).items()
        for label, below in _class_folders(path, folder, odd)
        for name in below
    ]


def is_image(name: str) -> bool:
    """Whether a file has the suffix of an image."""
    return name.lower().endswith(SUFFIXES)


def _split_folders(path: Path, odd: Counter[str]) -> dict[str, Path]:
    """The folder with the class folders of each split; only ``all`` if there are no split folders."""
    found: dict[str, Path] = {}
    others = []
    for folder in _folders(path, odd):
        split = SPLIT_FOLDERS.get(folder.name)
        if split is None:
            others.append(folder)
        elif split in found:
            raise DataError(f"{path} has both {found[split].name} and {folder.name}; keep one of them")
        else:
            found[split] = folder
    if not found:
        return {"all": path}
    for folder in others:
        if _images(folder, Counter()):
            raise DataError(
                f"{path} has split folders ({', '.join(sorted(part.name for part in found.values()))}) and, beside "
                f"them, {folder.name} with images; move it into a split, or out of the source"
            )
    _count_files(path, odd)
    return found


def _class_folders(path: Path, folder: Path, odd: Counter[str]) -> list[tuple[str, list[str]]]:
    """(class, ids) of each class folder, sorted by name."""
    loose = _count_files(folder, odd)
    out = []
    for entry in _folders(folder, odd):
        below = _images(entry, odd)
        if not below:
            raise DataError(f"the class folder {entry} has no images; remove it, or put images in ({_suffixes()})")
        out.append((entry.name, sorted(item.relative_to(path).as_posix() for item in below)))
    if not out:
        where = f"{loose:,} images are in {folder} itself" if loose else f"{folder} has no images"
        raise DataError(f"{where}; make a folder for each class in it, and put the images of the class there")
    return out


def _count_files(folder: Path, odd: Counter[str]) -> int:
    """Count the files in a folder that should have only folders; return how many are images."""
    images = 0
    for entry in _entries(folder):
        if entry.is_file() and not entry.name.startswith("."):
            images += is_image(entry.name)
            odd["images outside class folders" if is_image(entry.name) else "files that are not images"] += 1
    return images


def _folders(path: Path, odd: Counter[str]) -> list[Path]:
    out = []
    for entry in _entries(path):
        if entry.is_dir() and not _hidden(entry.name):
            if entry.is_symlink():
                odd["links to folders"] += 1
            else:
                out.append(entry)
    return out


def _entries(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError as error:
        raise DataError(f"the folder {path} cannot be read: {error.strerror or error}") from None


def _images(folder: Path, odd: Counter[str]) -> list[Path]:
    out = []
    for base, folders, files in os.walk(folder, followlinks=False):
        odd["links to folders"] += sum((Path(base) / name).is_symlink() for name in folders)
        folders[:] = [name for name in folders if not _hidden(name)]
        for name in files:
            if is_image(name) and not name.startswith("."):
                out.append(Path(base) / name)
            elif not name.startswith("."):
                odd["files that are not images"] += 1
    odd += Counter()  # drop zeros
    return out


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _suffixes() -> str:
    return " ".join(suffix[1:] for suffix in SUFFIXES)


def group_of(pattern: str, name: str) -> str:
    """The group of an id: the part that matches the pattern."""
    match = re.search(pattern, name)
    if match is None:
        raise DataError(f"data.group: the pattern {pattern!r} matches nothing in {name}; every image needs a group")
    return (match.group(1) or "") if match.re.groups else match.group(0)
