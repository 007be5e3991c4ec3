"""Folders ``images`` and ``masks`` whose files have the same stems, directly in the source or in a folder per split."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from petriscope.core.errors import DataError
from petriscope.core.recipe import DataSection
from petriscope.data.decode import decode_files
from petriscope.data.imageset import ImageSet
from petriscope.data.sources.folders import SPLIT_FOLDERS, group_of, is_image
from petriscope.data.sources.listing import ImageFile, rows_by_split, sets_over
from petriscope.data.sources.mask_files import MaskReader
from petriscope.data.sources.mask_values import ValueTable, given_table, name_values, pack

IMAGES, MASKS, NAMES = "images", "masks", "classes.txt"
COLOR_TABLES = ("labelmap.txt", "class_dict.csv")  # of CVAT, and of CamVid and sets like it
NAME_AND_COLOR = re.compile(
    r"(?P<name>[^#:,][^:,]*)[:,]\s*(?P<r>\d{1,3})\s*,\s*(?P<g>\d{1,3})\s*,\s*(?P<b>\d{1,3})\b", re.ASCII
)
SHOWN = 3  # problems that a message lists


def is_mask_folder(path: Path) -> bool:
    """Whether a folder, or a split in it, has ``images`` and ``masks``."""
    return any((folder / IMAGES).is_dir() and (folder / MASKS).is_dir() for folder in _split_folders(path).values())


def read(path: Path, section: DataSection, warnings: list[str]) -> dict[str, ImageSet]:
    """Read images and their masks. The ids are the images' paths below ``path``, with forward slashes.

    Args:
        path: a folder with the folders ``images`` and ``masks``, or with the folders train, val and test that have them. A
            mask has the stem and the size of its image and one class number per pixel, 255 if unlabeled, in an indexed or
            gray image in a lossless format; or other values or colors, which ``section.mask_values`` or a file of
            `COLOR_TABLES` lists. An optional ``classes.txt`` names the classes from 0, one per line.
        section: its ``group`` is a pattern that is searched in the id. If ``unreadable`` is ``skip``, images and masks
            without one another, and images whose masks cannot be read, are left out.

    Raises:
        DataError: an image without a mask, a mask without an image, a mask of another size or without class numbers, or an
            unreadable file.
    """
    pairs, alone = _find(path)
    if alone:
        _refuse(alone, section, warnings)
    found = [pair for pair in pairs if pair.mask is not None and pair.mask.is_file()]
    if not found:
        raise DataError(f"{path} has no image with a mask; the two have the same name up to the suffix")
    files = [pair.id for pair in found]
    groups = None if section.group is None else np.array([group_of(section.group, name) for name in files])
    decoded = decode_files([pair.path for pair in found], files, section, str(path))
    warnings += decoded.warnings
    height, width = decoded.pixels.shape[1:3]
    names, table = _names(path), given_table(section)
    if table is None and (listed := _color_table(path)) is not None:
        names, table = listed
    reader = MaskReader(table, (int(height), int(width)))
    rows = rows_by_split(decoded, [pair.split for pair in found])
    masks, bad = {}, []
    for split, indices in list(rows.items()):
        array, wrong = reader.read([found[row] for row in indices.tolist()], split)
        good = np.array([index for index in range(len(indices)) if index not in wrong], dtype=np.int64)
        bad += [wrong[index] for index in sorted(wrong)]
        if len(good):
            masks[split], rows[split] = (array, indices) if not wrong else (array[good], indices[good])
        else:
            del rows[split]
    if bad:
        _refuse(bad, section, warnings)
    if not rows:
        raise DataError(f"{path}: no mask can be read: {bad[0]}")
    reader.check_values(str(path))
    ids = {split: [files[row] for row in indices.tolist()] for split, indices in rows.items()}
    targets, classes = name_values(masks, names, section, str(path), warnings, table, ids)
    return sets_over(decoded, rows, targets, classes, files, groups)


def list_files(path: Path) -> list[ImageFile]:
    """The image files and their masks, readable or not."""
    return _find(path)[0]


def _split_folders(path: Path) -> dict[str, Path]:
    if (path / IMAGES).is_dir() and (path / MASKS).is_dir():
        return {"all": path}
    found: dict[str, Path] = {}
    for name, split in SPLIT_FOLDERS.items():
        if (path / name).is_dir():
            if split in found:
                raise DataError(f"{path} has both {found[split].name} and {name}; keep one of them")
            found[split] = path / name
    return found


def _find(path: Path) -> tuple[list[ImageFile], list[str]]:
    """The images, sorted by name, each with the mask that it has or should have; and what is wrong with images without masks
    and masks without images, a sentence each."""
    found, alone = [], []
    for split, folder in _split_folders(path).items():
        images, masks = (_by_stem(folder / name) for name in (IMAGES, MASKS))
        if not images:
            raise DataError(f"{folder / IMAGES} has no images")
        for stem in sorted(images):
            name = images[stem].relative_to(path).as_posix()
            found.append(ImageFile(name, images[stem], split, "", masks.get(stem, folder / MASKS / f"{stem}.png")))
        alone += [
            f"{images[stem]} has no mask; put {stem}.png in {folder / MASKS}, or remove the image"
            for stem in sorted(images.keys() - masks.keys())
        ]
        alone += [
            f"{masks[stem]} has no image in {folder / IMAGES}; add it, or remove the mask"
            for stem in sorted(masks.keys() - images.keys())
        ]
    return found, alone


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; images belong in {IMAGES} and their masks in {MASKS}")
    out: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.is_file() and is_image(file.name) and not file.name.startswith("."):
            if file.stem in out:
                raise DataError(f"{folder} has both {out[file.stem].name} and {file.name}; their stems must differ")
            out[file.stem] = file
    return out


def _names(path: Path) -> list[str] | None:
    if not (path / NAMES).is_file():
        return None
    names = [line.strip() for line in (path / NAMES).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names or len(set(names)) < len(names):
        raise DataError(f"{path / NAMES} has no names or a name twice; it must name the classes from 0, one per line")
    return names


def _color_table(path: Path) -> tuple[list[str], ValueTable] | None:
    """The names and colors of the classes in a file of `COLOR_TABLES`, if there is one."""
    for file in (path / name for name in COLOR_TABLES):
        if not file.is_file():
            continue
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        rows = [match for line in lines if (match := NAME_AND_COLOR.match(line)) is not None]
        colors = np.array([[int(row[channel]) for channel in "rgb"] for row in rows], dtype=np.int64).reshape(-1, 3)
        names = [row["name"].strip() for row in rows]
        if (
            not rows
            or colors.max() > 255
            or len({*names}) < len(rows)
            or len({*map(tuple, colors.tolist())}) < len(rows)
        ):
            raise DataError(f"{file} must have a name and a color of its own for each class, such as: sky,128,128,128")
        return names, ValueTable(tuple(pack(colors).tolist()), True, str(file))
    return None


def _refuse(problems: list[str], section: DataSection, warnings: list[str]) -> None:
    """Stop because of images or masks that cannot be used; or, if ``section.unreadable`` is ``skip``, say that they are left
    out."""
    more = f"; and {len(problems) - SHOWN:,} more" if len(problems) > SHOWN else ""
    listed = "; ".join(problems[:SHOWN]) + more
    if len(problems) > 1:
        listed = f"{len(problems):,} images or masks cannot be used: {listed}"
    if section.unreadable == "stop":
        raise DataError(f"{listed}. To leave them out: --set data.unreadable=skip")
    warnings.append(f"{listed}; left out")
