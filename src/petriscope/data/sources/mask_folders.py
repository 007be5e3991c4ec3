"""Images and masks in the files of a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from petriscope.core.errors import DataError
from petriscope.core.files import read_text
from petriscope.core.names import names_in_lines, tidy
from petriscope.core.recipe import DataSection
from petriscope.data.decode_many import decode_files
from petriscope.data.imageset import ImageSet
from petriscope.data.omissions import LeftOutSentence, Omission
from petriscope.data.sources.listing import folder_column, groups_of, rows_by_split, say_folders_may_group, sets_over
from petriscope.data.sources.mask_files import MaskReader
from petriscope.data.sources.mask_values import ValueTable, given_table, have_names, name_values, pack
from petriscope.data.sources.pairs import COLOR_TABLES, NAMES, Pairs

MAX_BYTES = 2**20  # of a file of names
NAME_AND_COLOR = re.compile(
    r"(?P<name>[^#:,][^:,]*)[:,]\s*(?P<r>\d{1,3})\s*,\s*(?P<g>\d{1,3})\s*,\s*(?P<b>\d{1,3})\b", re.ASCII
)
SHOWN = 3  # problems that a message lists


def read(path: Path, pairs: Pairs, section: DataSection, warnings: list[str]) -> dict[str, ImageSet]:
    """Read images and their masks. The ids are the images' paths below ``path``, with forward slashes.

    Args:
        path: the source. An optional ``classes.txt`` in it names the classes from 0, one per line.
        pairs: its images and masks. A mask has the size of its image and one class number per pixel, 255 if unlabeled, in
            an indexed or gray image in a lossless format; or other values or colors, which ``section.mask_values`` or a file
            of `COLOR_TABLES` lists.
        section: its ``group`` is a pattern that is searched in the id. If ``unreadable`` is ``skip``, images and masks
            without one another, and images whose masks cannot be read, are left out.

    Raises:
        DataError: an image without a mask, a mask without an image, a mask of another size or without class numbers, or an
            unreadable file.
    """
    if pairs.alone:
        _refuse([text for _, text in pairs.alone], section, warnings)
    found = [file for file in pairs.files if file.mask_file.is_file()]
    if not found:
        raise DataError(f"{path} has no image with a mask; the two have the same name up to the suffix")
    files = [pair.id for pair in found]
    groups = groups_of(section, files)
    if {pair.split for pair in found} == {"all"}:
        warnings += say_folders_may_group(files, section, str(path))
    decoded = decode_files([pair.path for pair in found], files, section, str(path))
    warnings += decoded.warnings
    height, width = decoded.pixels.shape[1:3]
    homes = _homes(path, files)
    names, table = _names(homes), given_table(section)
    if table is None and (listed := _color_table(homes)) is not None:
        names, table = listed
    reader = MaskReader(table, (int(height), int(width)), decoded.padded)
    rows = rows_by_split(decoded, [pair.split for pair in found])
    masks, bad = {}, []
    for split, indices in list(rows.items()):
        some = indices.tolist()
        array, wrong = reader.read([found[row] for row in some], split, [decoded.contents[row] for row in some])
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
    reader.check(str(path), warnings)
    ids = {split: [files[row] for row in indices.tolist()] for split, indices in rows.items()}
    targets, classes = name_values(masks, names, section, str(path), warnings, table, ids)
    named = have_names(names, table, section)
    return sets_over(decoded, rows, targets, classes, files, groups, named, folder_column(files))


def _homes(path: Path, files: Sequence[str]) -> list[Path]:
    """The source, and the folders in it that are around all images."""
    around = Path(os.path.commonpath([Path(name).parent for name in files]))
    return [path / part for part in (*around.parents[::-1], around)]


def _names(homes: Sequence[Path]) -> list[str] | None:
    for file in (home / NAMES for home in homes):
        if file.is_file():
            names = names_in_lines(read_text(file, MAX_BYTES, "a list of class names"), str(file))
            if not names or len({*names}) < len(names):
                raise DataError(f"{file} has no names or a name twice; it must name the classes from 0, one per line")
            return names
    return None


def _color_table(homes: Sequence[Path]) -> tuple[list[str], ValueTable] | None:
    """The names and colors of the classes in a file of `COLOR_TABLES`, if there is one."""
    for file in (home / name for home in homes for name in COLOR_TABLES):
        if not file.is_file():
            continue
        lines = read_text(file, MAX_BYTES, "a table of colors").splitlines()
        rows = [match for line in lines if (match := NAME_AND_COLOR.match(line)) is not None]
        colors = np.array([[int(row[channel]) for channel in "rgb"] for row in rows], dtype=np.int64).reshape(-1, 3)
        names = [tidy(row["name"]) for row in rows]
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
    unusable = Omission("images or masks that cannot be used", len(problems), problems[0])
    warnings.append(LeftOutSentence(f"{listed}; left out", [unusable]))
