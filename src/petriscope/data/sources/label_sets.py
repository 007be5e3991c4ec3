"""Read any number of labels per image: arrays of 0 and 1, columns of 0 and 1, or a column that lists labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from petriscope.core.errors import DataError, RequestError, near, shortened, shown
from petriscope.core.names import tidy
from petriscope.core.recipe import DataSection
from petriscope.data.sources.labels import MAX_CLASSES, check_names, is_one_hot, sort_names

if TYPE_CHECKING:
    import pandas as pd

MULTILABEL = "multilabel"
SEPARATORS = ("|", ";", ",")  # between the labels of a cell; the first that occurs in the column
NOTHING = frozenset(("no finding", "no findings", "none"))  # what a cell may say in place of labels, in lower case
FLAGS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
SHORTEST_LIST = 2  # columns of 0 and 1 that are read as labels without being asked for
FEW = 0.02  # of the images; where no more have not exactly one label, these are taken for mistakes


@dataclass(frozen=True)
class LabelSets:
    """The labels of N images.

    Args:
        targets: uint8 [N, K], 1 where an image has a label.
        classes: K names.
        columns: of the table, from which they were read.
    """

    targets: np.ndarray
    classes: tuple[str, ...]
    columns: tuple[str, ...]


def are_several(
    labels: Mapping[str, np.ndarray], section: DataSection, where: str, warnings: list[str] | None = None
) -> bool:
    """Whether arrays of labels, by split, have any number of labels per image: those that are 0 and 1 in [N, K], and either
    not one-hot or asked for. That they are taken for it is added to ``warnings``.

    Raises:
        DataError: so few images have not exactly one label that they are more likely mistakes.
    """
    if section.task != "auto":
        return section.task == MULTILABEL
    wide = [each for each in labels.values() if each.ndim == 2 and each.shape[1] > 1]
    if len(wide) < len(labels) or not all(_is_binary(each) for each in wide) or all(is_one_hot(each) for each in wide):
        return False
    odd = {split: np.flatnonzero((each == 1).sum(1) != 1) for split, each in labels.items()}
    count, total = sum(map(len, odd.values())), sum(map(len, labels.values()))
    if count <= FEW * total:
        split, at = next((split, rows[0]) for split, rows in odd.items() if len(rows))
        raise DataError(
            f"{where}: {count:,} of {total:,} images have not exactly one label, first image {at} of {split}; correct them, or "
            f"--set data.task={MULTILABEL} reads any number of labels per image"
        )
    if warnings is not None:
        images = "1 image that has" if count == 1 else f"{count:,} images that have"
        warnings.append(
            f"{where}: its labels were read as any number of labels per image, because of {images} not exactly one label; if "
            "each image has one class, correct them"
        )
    return True


def check_flags(labels: np.ndarray, where: str) -> np.ndarray:
    """Labels that are 0 and 1, [N, K] of any type, as uint8.

    Raises:
        DataError: another shape, or another value; the message names the image.
    """
    if labels.ndim != 2 or labels.shape[1] > MAX_CLASSES:
        raise DataError(
            f"{where} has shape {list(labels.shape)}; any number of labels per image are [N, K] of 0 and 1, a column per class"
        )
    if labels.dtype.kind not in "iubf":
        raise DataError(f"{where} has type {labels.dtype}; labels are 0 or 1")
    wrong = np.flatnonzero(~((labels == 0) | (labels == 1)).all(1))
    if len(wrong):
        row = labels[wrong[0]]
        value = row[~((row == 0) | (row == 1))][0]
        raise DataError(
            f"{where}: image {wrong[0]} has the label {value}, and {len(wrong):,} of {len(labels):,} images have such; a label "
            "is 1 where the image has it, else 0. Leave out images whose labels are not known"
        )
    return labels.astype(np.uint8)


def name_flags(count: int, names: Sequence[str] | None, section: DataSection, where: str) -> tuple[str, ...]:
    """The names of ``count`` columns of labels: ``section.classes``, or those of the source, or their numbers.

    Raises:
        DataError: the source names another number of classes.
        RequestError: ``section.classes`` does.
    """
    if names is not None and len(names) != count:
        raise DataError(f"{where} has {count} labels per image and names {len(names)} classes: {', '.join(names)}")
    if section.classes is None:
        return tuple(str(k) for k in range(count)) if names is None else check_names(names, where)
    if len(section.classes) != count:
        raise RequestError(f"data.classes names {len(section.classes)} classes; {where} has {count} labels per image")
    return check_names(section.classes, "data.classes")


def of_table(table: pd.DataFrame, section: DataSection, where: str, warnings: list[str]) -> LabelSets | None:
    """The labels of a table: the column ``label`` if it lists some, or the columns that hold 0 and 1 alone.

    A cell lists labels if it is a list, as in Parquet, or where `MULTILABEL` is asked for, text with `SEPARATORS`. Columns of 0
    and 1 are read where there is no column ``label``, at least two of them unless asked for; ``section.classes`` says which, and
    in which order.

    Returns:
        None where a table has one label per image.

    Raises:
        DataError: a cell has something else.
        RequestError: ``section.classes`` names a column that is no label; or labels are asked for, and none are found.
    """
    wanted = section.task == MULTILABEL
    if section.task not in ("auto", MULTILABEL):
        return None
    names = [str(column) for column in table.columns]
    if "label" in names and names.count("label") == 1:
        cells = table["label"].tolist()
        lists = [_is_list(cell) for cell in cells]
        if not wanted and not any(lists):
            _hint(cells, section, where, warnings)
            return None
        return _of_lists(cells, lists, section, where, warnings)
    found = _flag_columns(table, names)
    if section.classes is not None:
        if lacking := [name for name in section.classes if name not in found]:
            if not wanted:
                return None
            raise RequestError(
                f"data.classes: {where} has no column {lacking[0]!r} of 0 and 1; {near(lacking[0], found)}"
            )
        found = {name: found[name] for name in section.classes}
    if not wanted and len(found) < SHORTEST_LIST:
        return None
    if not found:
        raise RequestError(
            f"{where} has no labels: data.task is {MULTILABEL}, which needs a column label that lists labels (a|b), or a column "
            f"of 0 and 1 for each class; its columns are {shown(', '.join(names))}"
        )
    if section.classes is None:
        warnings.append(
            f"{where}: the columns {shortened(', '.join(found))} hold 0 and 1 alone and were read as labels"
        )
    return LabelSets(np.stack(list(found.values()), 1), check_names(tuple(found), where), tuple(found))


def _of_lists(
    cells: Sequence[Any], lists: Sequence[bool], section: DataSection, where: str, warnings: list[str]
) -> LabelSets:
    texts = [str(cell) for cell, is_list in zip(cells, lists, strict=True) if not is_list and not _is_missing(cell)]
    separator = next((each for each in SEPARATORS if any(each in text for text in texts)), SEPARATORS[0])
    nothing = 0
    named: list[list[str]] = []
    for row, (cell, is_list) in enumerate(zip(cells, lists, strict=True)):
        words = _words(cell, is_list, separator, where, row)
        if len(words) == 1 and words[0].lower() in NOTHING and words[0] not in (section.classes or ()):
            words, nothing = [], nothing + 1
        named.append(words)
    if nothing:
        warnings.append(
            f"{where}: {nothing:,} images whose label says that nothing was found were read as having no label"
        )
    every = {word for words in named for word in words}
    if len(every) > MAX_CLASSES:
        raise DataError(f"{where} has {len(every):,} different labels; at most {MAX_CLASSES:,} classes are allowed")
    classes = sort_names(every) if section.classes is None else check_names(section.classes, "data.classes")
    if lacking := sort_names(every - {*classes}):
        raise RequestError(f"data.classes lacks the class {lacking[0]!r} of {where}; {near(lacking[0], classes)}")
    place = {name: k for k, name in enumerate(check_names(classes, where))}
    targets = np.zeros((len(cells), len(classes)), dtype=np.uint8)
    for row, words in enumerate(named):
        targets[row, [place[word] for word in words]] = 1
    return LabelSets(targets, tuple(classes), ("label",))


def _words(cell: Any, is_list: bool, separator: str, where: str, row: int) -> list[str]:
    if is_list:
        if any(np.ndim(each) for each in cell):
            raise DataError(
                f"{where}: the cell label of row {row} (counted from 0) has lists in a list; list the labels"
            )
        parts = [each.decode("utf-8", "replace") if isinstance(each, bytes) else str(each) for each in cell]
    else:
        parts = [] if _is_missing(cell) else str(cell).split(separator)
        parts = [] if not any(tidy(part) for part in parts) else parts
    words = [tidy(part) for part in parts]
    if "" in words:
        raise DataError(
            f"{where}: the cell label of row {row} (counted from 0), {shortened(str(cell))!r}, has an empty label; remove a "
            f"separator ({separator}) or write the label"
        )
    return list(dict.fromkeys(words))


def _flag_columns(table: pd.DataFrame, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The columns that hold 0 and 1 alone, both of them, uint8 [N], by name."""
    found = {}
    for place, name in enumerate(names):
        if name in ("path", "split", "group", "label", "") or names.count(name) > 1:
            continue
        try:
            cells = [FLAGS.get(str(cell).strip().lower()) for cell in table.iloc[:, place].tolist()]
        except Exception:  # text that is not UTF-8, as several kinds: no column of 0 and 1
            continue
        if None not in cells and len({*cells}) == 2:
            found[name] = np.array(cells, dtype=np.uint8)
    return found


def _hint(cells: Sequence[Any], section: DataSection, where: str, warnings: list[str]) -> None:
    """Say how to read cells that may list labels."""
    listed = [cell for cell in cells if isinstance(cell, str) and "|" in cell]
    if listed and section.task == "auto":
        warnings.append(
            f"{where}: {len(listed):,} labels have | in them, such as {shortened(listed[0])}, and were read as one class each; "
            f"--set data.task={MULTILABEL} reads several labels per image"
        )


def _is_list(cell: Any) -> bool:
    return isinstance(cell, (list, tuple, np.ndarray))


def _is_missing(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float) and cell != cell)


def _is_binary(labels: np.ndarray) -> bool:
    return labels.dtype.kind in "iubf" and bool(((labels == 0) | (labels == 1)).all())
