"""CSV and Parquet tables: one row per image, with the columns path and label, and optionally split and group."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

import numpy as np

from petriscope.core.errors import DataError, RequestError, near
from petriscope.core.recipe import DataSection
from petriscope.data.decode import decode_files
from petriscope.data.imageset import ImageSet
from petriscope.data.sources.labels import check_numbers, index_names, name_numbers
from petriscope.data.sources.listing import ImageFile, rows_by_split, sets_over
from petriscope.data.sources.spelling import split_of

if TYPE_CHECKING:
    import pandas as pd


def read(path: Path, section: DataSection, warnings: list[str]) -> dict[str, ImageSet]:
    """Read the images that a table lists. Their ids are the paths in it.

    Args:
        path: a CSV or Parquet file. Columns: ``path`` (relative to the table's folder, or absolute), ``label`` (names,
            or numbers from 0), optionally ``split`` (train, val, test), and the column that ``section.group`` names
            (default: ``group``, if there is one).

    Raises:
        DataError: a column is missing, a cell is empty or wrong, a path occurs twice, or an image is unreadable.
        RequestError: ``section.group`` names no column.
    """
    table = _load(path)
    found = _files(table, path)
    files = [file.id for file in found]
    groups = _groups(table, section, path)
    numbers, names = _labels(table, path)

    decoded = decode_files([file.path for file in found], files, section, str(path))
    warnings += decoded.warnings
    rows = rows_by_split(decoded, [file.split for file in found])
    if numbers is not None:
        targets, classes = name_numbers({s: numbers[indices] for s, indices in rows.items()}, None, section, str(path))
    else:
        targets, classes = index_names(
            {s: [names[row] for row in indices] for s, indices in rows.items()}, section, str(path)
        )
    return sets_over(decoded, rows, targets, classes, files, groups)


def list_files(path: Path) -> list[ImageFile]:
    """The image files that the table at ``path`` lists, readable or not."""
    return _files(_load(path), path)


def _files(table: pd.DataFrame, path: Path) -> list[ImageFile]:
    if not len(table):
        raise DataError(f"{path} has no rows")
    files = _text(table, "path", path)
    places = [_place(name, row, path) for row, name in enumerate(files)]
    if len(set(files)) < len(files):
        first: dict[str, int] = {}
        for row, name in enumerate(files):
            if first.setdefault(name, row) != row:
                raise DataError(f"{path}: {name} occurs twice, in rows {first[name]} and {row} (counted from 0)")
    splits = ["all"] * len(files)
    if "split" in table.columns:
        splits = [_split(name, row, path) for row, name in enumerate(_text(table, "split", path))]
    labels = _text(table, "label", path)
    return [ImageFile(*file) for file in zip(files, places, splits, labels, strict=True)]


def _load(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        if path.suffix.lower() == ".csv":
            # As text, because a class may be called NA.
            return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        return pd.read_parquet(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # the parsers raise many kinds on damaged files
        raise DataError(f"{path} cannot be read as a table: {error}") from None


def _column(table: pd.DataFrame, name: str, path: Path) -> pd.Series:
    columns = [str(column) for column in table.columns]
    if name not in columns:
        raise DataError(
            f"{path} has no column {name!r}; {near(name, columns)} A table needs the columns path and label"
        )
    return table[name]


def _text(table: pd.DataFrame, name: str, path: Path) -> list[str]:
    column = _column(table, name, path)
    out = [str(value) for value in column]
    for row, (value, missing) in enumerate(zip(out, column.isna(), strict=True)):
        if missing or not value.strip():
            raise DataError(f"{path}: the cell {name} of row {row} (counted from 0) is empty")
    return out


def _place(name: str, row: int, path: Path) -> Path:
    if Path(name).is_absolute():
        return Path(name)
    if ".." in PurePosixPath(name).parts or ".." in PureWindowsPath(name).parts:
        raise DataError(
            f"{path}: the path {name!r} in row {row} is outside the folder of the table; "
            "write it without .., or as an absolute path"
        )
    return path.parent / name


def _split(name: str, row: int, path: Path) -> str:
    split = split_of(name)
    if split is None:
        raise DataError(
            f"{path}: unknown split {name!r} in row {row} (counted from 0); {near(name, ('train', 'val', 'test'))}"
        )
    return split


def _groups(table: pd.DataFrame, section: DataSection, path: Path) -> np.ndarray | None:
    name = section.group or "group"
    if name in table.columns:
        return np.array(_text(table, name, path))
    if section.group is not None:
        columns = [str(column) for column in table.columns]
        raise RequestError(f"data.group: {path} has no column {name!r}; {near(name, columns)}")
    return None


def _labels(table: pd.DataFrame, path: Path) -> tuple[np.ndarray | None, list[str]]:
    """The class numbers, None if the labels are names; and the labels as text."""
    text = _text(table, "label", path)
    where = f"the label column of {path}"
    column = table["label"]
    if column.dtype.kind in "iufb":
        return check_numbers(column.to_numpy(), where), text
    if all(_is_number(value) for value in text):
        return check_numbers(np.array([max(min(int(value), 2**62), -(2**62)) for value in text]), where), text
    return None, text


def _is_number(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit()
