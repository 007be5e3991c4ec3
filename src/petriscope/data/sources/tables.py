"""CSV, JSON Lines and Parquet tables: one row per image, with the columns path and label (or a column of 0 and 1 for each
label), and optionally split, group and any others."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections.abc import Sequence
from glob import escape as glob_escape
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np

from petriscope.core.csv_tables import plain
from petriscope.core.errors import DataError, RequestError, near, shortened, shown
from petriscope.core.files import read_text
from petriscope.core.names import tidy
from petriscope.core.recipe import DataSection
from petriscope.data.decode import ARRAY, SUFFIXES
from petriscope.data.decode_many import decode_files
from petriscope.data.imageset import ImageSet
from petriscope.data.sources import label_sets
from petriscope.data.sources.labels import (
    check_numbers,
    index_names,
    name_numbers,
    say_missing,
    text_numbers,
    without_decimals,
)
from petriscope.data.sources.listing import (
    CALLED,
    JSON_TABLES,
    TEXT_TABLES,
    ImageFile,
    as_column,
    group_column,
    has_splits,
    is_called,
    is_image_id,
    rows_by_split,
    say_may_group,
    sets_over,
    split_doubt,
)
from petriscope.data.sources.spelling import split_and_rest, split_of, split_of_path
from petriscope.data.walk import LeftOut, walk
from petriscope.tasks import find_task

if TYPE_CHECKING:
    import pandas as pd

LOOKED_AT = 20  # images, to see where paths begin
MAX_BYTES = 2**30  # of a CSV or JSON Lines file
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
SUFFIXES_LONGEST_FIRST = sorted((*SUFFIXES, ARRAY), key=len, reverse=True)
_SEPARATOR_LINE = re.compile(r"sep=.(?:\r\n?|\n)")  # before the header, for Excel


def read(path: Path, section: DataSection, warnings: list[str]) -> dict[str, ImageSet]:
    """Read the images that a table lists. Their ids are the paths in it, with forward slashes.

    Args:
        path: a Parquet file; a JSON Lines file, an object per image; or a CSV file in UTF-8 (or UTF-16 with a byte order mark),
            with commas, semicolons, tabs or bars.
            Columns: ``path`` (relative to the table's folder, or absolute), ``label``, optionally ``split`` (train, val,
            test), and the column that ``section.group`` names (default: ``group``, if there is one). Labels are names, also
            if they are written with digits; only whole numbers that run from 0 without a gap, or index ``section.classes``,
            are class numbers. Several labels per image are read by `label_sets.of_table`. All other columns, such as
            scanner or day, become `ImageSet.columns`. ``section.image`` and ``section.label`` choose other columns for path and
            label. A file that is not at its path, which is a name alone, may be anywhere below the folder of the table; and
            a path may lack the suffix of the file.

    Raises:
        DataError: a column is missing, a cell is empty or wrong, a path occurs twice, or an image is unreadable.
        RequestError: ``section.image``, ``section.label`` or ``section.group`` names no column.
    """
    table = label_sets.with_one_class(_load(path, section, warnings), section, str(path))
    several = label_sets.of_table(table, section, str(path), warnings)
    found = _files(table, path, several, warnings)
    files = [file.id for file in found]
    groups = _groups(table, section, path, warnings)
    labels = [file.label for file in found]
    numbers = None if several else text_numbers(labels, section.classes, f"the label column of {path}")
    if not any(_is_file(Path(str(file.path))) for file in found):
        raise DataError(
            f"{path}: no file that it lists exists, neither {files[0]} nor any other; paths are absolute, or relative to the "
            "folder of the table. Move the table into the folder that the paths begin in, or one around all images"
        )
    decoded = decode_files([file.path for file in found], files, section, str(path))
    warnings += decoded.warnings
    rows = rows_by_split(decoded, [file.split for file in found])
    if several is not None:
        targets, classes = {s: several.targets[indices] for s, indices in rows.items()}, several.classes
    elif numbers is not None:
        targets, classes = name_numbers({s: numbers[indices] for s, indices in rows.items()}, None, section, str(path))
    else:
        targets, classes = index_names(
            {s: [labels[row] for row in indices] for s, indices in rows.items()}, section, str(path)
        )
    named = several.named if several is not None else numbers is None or section.classes is not None
    warnings += say_missing(labels, classes, section, str(path))
    columns = _other_columns(table, path, () if several is None else several.columns)
    if groups is None:
        warnings += say_may_group(columns, section, str(path))
    return sets_over(decoded, rows, targets, classes, files, groups, named, columns)


def list_files(path: Path, section: DataSection) -> list[ImageFile]:
    """The image files that the table at ``path`` lists, readable or not."""
    table = label_sets.with_one_class(_load(path, section, []), section, str(path))
    return _files(table, path, label_sets.of_table(table, section, str(path), []), [])


def list_paths(path: Path, section: DataSection, most: int | None = None) -> list[Path]:
    """The image files that the table at ``path`` lists, whatever their labels; those of the first ``most`` rows."""
    table = _load(path, section.model_copy(update={"label": None}), [])
    return [place for _, place in _places(table[:most], path, [])]


def has_labels(path: Path, section: DataSection) -> bool:
    """Whether the table at ``path`` has a column of labels, or some of 0 and 1."""
    table = _load(path, section, [])
    return "label" in table.columns or label_sets.of_table(table, section, str(path), []) is not None


def _places(table: pd.DataFrame, path: Path, warnings: list[str]) -> list[tuple[str, Path]]:
    """The id and the file of each image."""
    names = _text(table, "path", path)
    places = [_place(name, row, path) for row, name in enumerate(names)]
    above = f"{path.absolute().parent.name}/"
    if all(name.startswith(above) for name in names) and not any(_is_file(place) for _, place in places[:LOOKED_AT]):
        inside = [_place(name.removeprefix(above), row, path) for row, name in enumerate(names)]
        if any(_is_file(place) for _, place in inside[:LOOKED_AT]):
            warnings.append(f"{path}: its paths begin with {above}, the folder that it is in, and were read from there")
            places = inside
    return _found_below(places, path, warnings)


def _files(
    table: pd.DataFrame, path: Path, several: label_sets.LabelSets | None, warnings: list[str]
) -> list[ImageFile]:
    places = _places(table, path, warnings)
    task = find_task(label_sets.MULTILABEL)
    labels = _labels(table, path) if several is None else task.names(several.targets, several.classes)
    if "split" in table.columns:
        splits = [_split(name, row, path) for row, name in enumerate(_text(table, "split", path))]
    else:
        splits = _splits_of_paths([name for name, _ in places], None if several else labels, path, warnings)
    first: dict[Path, int] = {}
    for row, (name, place) in enumerate(places):
        if (other := first.setdefault(place.absolute(), row)) != row:
            said = (
                ""
                if labels[other] == labels[row]
                else f" with the labels {shown(labels[other])} and {shown(labels[row])},"
            )
            raise DataError(
                f"{path}: {name} occurs twice,{said} in rows {other} and {row} (counted from 0); keep one of them"
            )
    return [ImageFile(*place, split, label) for place, split, label in zip(places, splits, labels, strict=True)]


def has_columns(path: Path, names: set[str]) -> bool:
    """Whether the table at ``path`` has columns called so."""
    return all({*map(tidy, names)} <= {*_as_written(each).columns} for each in tables_of_splits(path) or [path])


def tables_of_splits(path: Path) -> list[Path]:
    """The tables of one name that are in folders of splits, such as ``train/metadata.csv``; none if ``path``, which is what they
    would be called in the folder around these, is a file."""
    if path.is_file():
        return []
    return sorted(each for each in path.parent.glob(f"*/{glob_escape(path.name)}") if split_of(each.parent.name))


def _load(path: Path, section: DataSection, warnings: list[str]) -> pd.DataFrame:
    """The table, with the columns path and label by these names; or those of the splits, with the column split."""
    if not (parts := tables_of_splits(path)):
        return _load_one(path, section, warnings)
    import pandas as pd

    loaded = [_load_one(each, section, warnings) for each in parts]
    for each, table in zip(parts, loaded, strict=True):
        table["path"] = [f"{each.parent.name}/{name}" for name in _text(table, "path", each)]
        table["split"] = split_of(each.parent.name)
    shared = [name for name in loaded[0].columns if all(name in table.columns for table in loaded)]
    if lost := sorted({str(name) for table in loaded for name in table.columns} - {*shared}):
        warnings.append(
            f"{path}: not all of {', '.join(map(str, parts))} have the column {lost[0]}, which was left out"
        )
    return pd.concat([table[shared] for table in loaded], ignore_index=True)


def _load_one(path: Path, section: DataSection, warnings: list[str]) -> pd.DataFrame:
    table = _as_written(path)
    for wanted, name in (("path", section.image), ("label", section.label)):
        if name is not None:
            table = _chosen(table, wanted, tidy(name), section, path, warnings)
    table.columns = _rename(list(table.columns), table, path, warnings)
    if not len(table):
        raise DataError(f"{path} has no rows")
    return table


def _as_written(path: Path) -> pd.DataFrame:
    """The table, with the names that its columns have in it."""
    import pandas as pd

    if path.suffix.lower() in TEXT_TABLES:
        table = _read_csv(path)
    elif path.suffix.lower() in JSON_TABLES:
        table = _read_json_lines(path)
    else:
        try:
            table = pd.read_parquet(path)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
        except Exception as error:  # the parser raises many kinds on damaged files
            raise DataError(f"{path} cannot be read as a table: {error}") from None
    table.columns = [tidy(str(column)) for column in table.columns]
    return table


def _read_csv(path: Path) -> pd.DataFrame:
    """All cells as text, because a class may be called NA or 007."""
    import pandas as pd

    text = read_text(path, MAX_BYTES, "a table of images")
    if told := _SEPARATOR_LINE.match(text):
        text = text[told.end() :]
    first = next((line for line in io.StringIO(text, newline=None) if line.strip()), "")
    separator = max(SEPARATORS, key=lambda each: _known(first, each))
    header: list[str] = []
    cells: list[list[str]] = []
    try:
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True):
            if not header:
                header = row
            elif any(row):
                if any(row[len(header) :]):
                    raise DataError(
                        f"{path}: row {len(cells)} (counted from 0) has {len(row)} cells, and the header {len(header)}, parted "
                        f"by {SEPARATORS[separator]}; write a cell that has the separator in it in double quotes"
                    )
                cells.append([*map(plain, row), *[""] * len(header)][: len(header)])
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as a table: {error}, in row {len(cells)} (counted from 0)") from None
    return pd.DataFrame(cells, columns=header, dtype=object)


def _read_json_lines(path: Path) -> pd.DataFrame:
    """The values as they are; what an object does not have is None."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for line in read_text(path, MAX_BYTES, "a table of images").split("\n"):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: row {len(rows)} (counted from 0) is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}: row {len(rows)} (counted from 0) is not a JSON object; each line must be one")
        rows.append(row)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return pd.DataFrame([[row.get(name) for name in columns] for row in rows], columns=columns, dtype=object)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, each of whose names occurs once."""
    out = dict(pairs)
    if len(out) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {shown(next(name for name in names if names.count(name) > 1))} twice")
    return out


def _known(header: str, separator: str) -> tuple[int, int]:
    """How many of the columns path and label a header has if it is separated so, and how many columns."""
    names = next(csv.reader([header], delimiter=separator, skipinitialspace=True), [])
    return sum(any(is_called(tidy(name), wanted) for name in names) for wanted in CALLED), len(names)


def _chosen(
    table: pd.DataFrame, wanted: str, name: str, section: DataSection, path: Path, warnings: list[str]
) -> pd.DataFrame:
    """The table with the column ``name`` in place of the one that is called as ``wanted`` is."""
    columns = list(table.columns)
    if name == wanted:
        return table
    if name not in columns:
        key = "data.image" if wanted == "path" else "data.label"
        if section.of_model:
            warnings.append(f"{path} has no column {name}, which {key} of the model names; usual names were looked for")
            return table
        raise RequestError(f"{key}: {path} has no column {name!r}; {near(name, columns)}")
    if wanted in columns:
        warnings.append(f"{path}: the column {wanted} was left out, because {name} was chosen in its place")
        table = table.drop(columns=wanted)
    return table.rename(columns={name: wanted})


def _rename(columns: list[str], table: pd.DataFrame, path: Path, warnings: list[str]) -> list[str]:
    """The names of the columns, with the usual other names of path, label and split replaced."""
    out = list(columns)
    for wanted in CALLED:
        if wanted in columns:
            continue
        called = [name for name in columns if is_called(name, wanted)]
        if wanted == "path" and not called:
            called = [name for name in columns if is_image_id(name)]
        if len(called) > 1:
            key = {"path": "data.image", "label": "data.label"}.get(wanted)
            raise DataError(
                f"{path} has the columns {' and '.join(called)}, each of which may be the {wanted}; rename one to {wanted}"
                + (f", or --set {key}={shown(called[0])} chooses one" if key else "")
            )
        if called:
            out[columns.index(called[0])] = wanted
            warnings.append(f"{path}: the column {called[0]} was read as {wanted}")
    if not {"path", "label"} & {*out} and any(name.lower().endswith((*SUFFIXES, ARRAY)) for name in columns):
        raise DataError(
            f"{path} has no header: its first row is {shown(', '.join(columns))}; put the names of the columns before it, "
            "such as path,label"
        )
    if "split" not in out:
        others = [index for index in range(len(out)) if out[index] not in ("path", "label")]
        cells = {index: [str(cell) for cell in _cells(table.iloc[:, index], path)] for index in others}
        parts = [index for index in others if has_splits(cells[index])]
        if len(parts) == 1:
            warnings.append(f"{path}: the column {out[parts[0]]} was read as split")
            out[parts[0]] = "split"
            return out
        doubts = {
            out[index]: doubt for index in others if (doubt := split_doubt(out[index], cells[index], len(parts) > 1))
        }
        warnings += [
            f"{path}: the column {name} may say the splits, but {doubt}, so it was not read as such; if it does, write train, "
            "val or test in each row of a column split"
            for name, doubt in doubts.items()
        ]
    return out


def _column(table: pd.DataFrame, name: str, path: Path) -> pd.Series:
    columns = [str(column) for column in table.columns]
    if name not in columns:
        if len(columns) == 1:
            raise DataError(
                f"{path} has one column, {shown(columns[0])}; a table has a header with the names of its columns, such as "
                "path,label, and cells that are parted by commas, semicolons, tabs or bars"
            )
        choose = {"path": "; --set data.image=COLUMN chooses it", "label": "; --set data.label=COLUMN chooses it"}
        if name == "label" and any("mask" in each.lower() for each in columns):
            choose[name] = (
                ". Masks are read from folders: put images in images, and the mask of each in masks by the same name"
            )
        raise DataError(
            f"{path} has no column {name!r}, and a table needs path and label; {near(name, columns)}{choose.get(name, '')}"
        )
    if columns.count(name) > 1:
        raise DataError(f"{path} has the column {name} twice; rename one of them")
    return table[name]


def _cells(column: pd.Series, path: Path) -> list[Any]:
    try:
        return column.tolist()
    except Exception as error:  # text that is not UTF-8, as several kinds
        raise DataError(f"{path}: the column {column.name} cannot be read: {error}") from None


def _text(table: pd.DataFrame, name: str, path: Path) -> list[str]:
    column = _column(table, name, path)
    out = []
    for row, (value, missing) in enumerate(zip(_cells(column, path), np.asarray(column.isna()), strict=True)):
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, dict) or (not isinstance(value, str) and np.ndim(value)):
            raise DataError(
                f"{path}: the cell {name} of row {row} (counted from 0) has several values; it must have one"
            )
        if missing or not (text := tidy(str(value))):
            listed = name == "label" and any(isinstance(each, str) and "|" in each for each in _cells(column, path))
            then = f"; --set data.task={label_sets.MULTILABEL} reads cells such as a|b, and empty ones as no label"
            raise DataError(f"{path}: the cell {name} of row {row} (counted from 0) is empty{then if listed else ''}")
        out.append(text)
    return out


def _place(name: str, row: int, path: Path) -> tuple[str, Path]:
    """The id of an image and its file."""
    if "\0" in name:
        raise DataError(f"{path}: the path {shown(name)} in row {row} (counted from 0) has a NUL character")
    if not Path(name).is_absolute() and ".." in (*PurePosixPath(name).parts, *PureWindowsPath(name).parts):
        raise DataError(
            f"{path}: the path {name!r} in row {row} is outside the folder of the table; "
            "write it without .., or as an absolute path"
        )
    found = next((each for each in _spellings(name) if _is_file(path.parent / each)), name)
    return PurePosixPath(found).as_posix(), path.parent / found


def _found_below(places: list[tuple[str, Path]], path: Path, warnings: list[str]) -> list[tuple[str, Path]]:
    """The same images. One that is missing at its path is looked for below the folder of the table, and taken if exactly one file
    there has its name (if the path is a name alone), or its path or name and a suffix."""
    lacking = {name for name, place in places if not _is_file(place)}
    lacking = {name for name in lacking if "/" not in name or _stem(name) is None}
    if not lacking:
        return places
    at: dict[str, list[str]] = {}
    for folder in walk(path.parent, LeftOut()).all():
        for name in (*folder.images, *folder.others):
            keys = [name]
            if stem := _stem(name):
                keys += dict.fromkeys((stem, folder.id_of(stem)))
            for key in keys:
                if key in lacking:
                    at.setdefault(key, []).append(folder.id_of(name))
    only = {name: found[0] for name, found in at.items() if len(found) == 1}
    if (
        own := split_and_rest(path.stem)[0]
    ) is not None:  # train.csv lists what is in train, where test has the same names
        for name, found in at.items():
            if len(found) > 1 and len(near_by := [each for each in found if split_of_path(each) == own]) == 1:
                only[name] = near_by[0]
    if twice := {name: found for name, found in at.items() if name not in only}:
        name, found = next(iter(twice.items()))
        raise DataError(f"{path}: {name} may be {found[0]} or {found[1]}; write the path of the file in the table")
    if only:
        warnings.append(f"{path}: {len(only):,} images were found by their names below its folder")
    return [(only[name], path.parent / only[name]) if name in only else (name, place) for name, place in places]


def _stem(name: str) -> str | None:
    """The name of an image file without its suffix; None for another file."""
    return next((name[: -len(suffix)] for suffix in SUFFIXES_LONGEST_FIRST if name.lower().endswith(suffix)), None)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _spellings(name: str) -> Sequence[str]:
    """A path as it is; and with slashes in place of backslashes, and with accents in the other forms of Unicode."""
    if name.isascii() and "\\" not in name:
        return ()
    slashed = dict.fromkeys((name, name.replace("\\", "/")))
    return [unicodedata.normalize(form, each) for form in ("NFC", "NFD") for each in slashed]


def _split(name: str, row: int, path: Path) -> str:
    split = split_of(name)
    if split is None:
        raise DataError(
            f"{path}: unknown split {name!r} in row {row} (counted from 0); {near(name, ('train', 'val', 'test'))}"
        )
    return split


def _splits_of_paths(names: Sequence[str], labels: Sequence[str] | None, path: Path, warnings: list[str]) -> list[str]:
    """The split of each image by the folders in its path below that of the table, where these name one of all images, and train
    among them, and train has all classes.

    Args:
        labels: one of each image; None: there are any number.
    """
    around = f"{path.parent.absolute().as_posix()}/"
    inner = [name.removeprefix(around) for name in names]
    found = [split_of_path(name) for name in inner]
    named = {split for split in found if split is not None}
    out = ["all"] * len(names)
    if "train" not in named or len(named) < 2:
        return out
    if labels is not None and all(
        split_of(label) == split for label, split in zip(labels, found, strict=True) if split
    ):
        return out  # the folders are classes
    why = ""
    if None in found:
        row = found.index(None)
        why = f"row {row} (counted from 0), {shortened(names[row])}, has none"
    elif labels is not None:
        here = {label for label, split in zip(labels, found, strict=True) if split == "train"}
        for label, split in zip(labels, found, strict=True):
            if label not in here:
                why = f"{split} has {shortened(label)}, and train has not"
                break
    listed = ", ".join(sorted(named))
    if why:
        warnings.append(
            f"{path}: the folders in its paths ({listed}) may say the splits, but {why}, so they were not read as such; if they "
            "do, add a column split"
        )
        return out
    warnings.append(f"{path}: the splits ({listed}) were read from the folders in its paths")
    return [str(split) for split in found]


def _groups(table: pd.DataFrame, section: DataSection, path: Path, warnings: list[str]) -> np.ndarray | None:
    name = group_column([str(column) for column in table.columns], section, str(path), warnings)
    return None if name is None else np.array(_text(table, name, path))


def _other_columns(table: pd.DataFrame, path: Path, labels: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The columns that say something else of the images, as text; empty cells are empty text. Columns that
    cannot be read, those of lists, those of labels, and those whose name another column has are left out."""
    names = [str(column) for column in table.columns]
    out = {}
    for place, name in enumerate(names):
        if name in ("path", "label", "split", "group", "", *labels) or names.count(name) > 1:
            continue
        column = table.iloc[:, place]
        try:
            cells, missing = _cells(column, path), np.asarray(column.isna())
        except DataError:  # the images can be used without it
            continue
        if any(np.ndim(value) for value in cells if not isinstance(value, (str, bytes))):
            continue
        text = ["" if empty else _as_text(value) for value, empty in zip(cells, missing, strict=True)]
        out[name] = as_column(without_decimals(text))
    return out


def _as_text(value: Any) -> str:
    return tidy(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))


def _labels(table: pd.DataFrame, path: Path) -> list[str]:
    """The labels as text. Whole numbers have no decimals, whether the column has text or floats."""
    column = _column(table, "label", path)
    if column.dtype.kind == "f" and not column.isna().any():
        return [str(number) for number in check_numbers(column.to_numpy(), f"the label column of {path}").tolist()]
    return without_decimals(_text(table, "label", path))
