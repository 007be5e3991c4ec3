"""Read any number of labels per image: arrays of 0 and 1, columns of 0 and 1, or a column that lists labels."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from petriscope.core.errors import DataError, RequestError, listed, near, shortened, shown
from petriscope.core.names import tidy
from petriscope.core.recipe import DataSection
from petriscope.core.results import CLASSIFICATION
from petriscope.data.sources.labels import MAX_CLASSES, check_alike, check_names, is_one_hot, sort_names

if TYPE_CHECKING:
    import pandas as pd

MULTILABEL = "multilabel"
SEPARATORS = ("|", ";", ",")  # between the labels of a cell; the first that occurs in the column
NOTHING = frozenset(("no finding", "no findings", "none"))  # what a cell may say in place of labels, in lower case
FLAGS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
UNKNOWN = frozenset(("-1", "-1.0", "", "nan", "none", "<na>"))  # where 0 and 1 say whether an image has a label
SHOWN = 3  # columns that a message lists
SHORTEST_LIST = 2  # columns of 0 and 1 that are read as labels without being asked for
OTHERS = re.compile(r"\s*[|;,/+&]\s*")  # what may part labels, also where it is not read so
BRACKETS = re.compile(r"\s*[\[(](.*)[\])]\s*", re.DOTALL)  # a list as programs write it into text
ITEM = re.compile(r"""'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|([^\s,'"][^,]*)""")
FEW = 0.02  # of the images; where no more have not exactly one label, these are taken for mistakes


@dataclass(frozen=True)
class LabelSets:
    """The labels of N images.

    Args:
        targets: uint8 [N, K], 1 where an image has a label.
        classes: K names.
        columns: of the table, from which they were read.
        named: whether the classes have names; or else they are called by their numbers.
    """

    targets: np.ndarray
    classes: tuple[str, ...]
    columns: tuple[str, ...]
    named: bool = True


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


def with_one_class(table: pd.DataFrame, section: DataSection, where: str) -> pd.DataFrame:
    """The same table; where one class per image is asked for, with the column ``label`` in place of columns of 0 and 1.

    Raises:
        DataError: an image has not exactly one of the classes.
    """
    names = [str(column) for column in table.columns]
    if section.task != CLASSIFICATION or "label" in names:
        return table
    found = _flag_columns(table, names, where)
    if len(found) < SHORTEST_LIST:
        return table
    flags, classes = np.stack(list(found.values()), 1), list(found)
    if len(odd := np.flatnonzero(flags.sum(1) != 1)):
        has = ", ".join(name for name, flag in zip(classes, flags[odd[0]], strict=True) if flag) or "none"
        raise DataError(
            f"{where}: {len(odd):,} of {len(flags):,} rows do not have exactly one class among {shortened(', '.join(classes))}; "
            f"the first, row {odd[0]} (counted from 0), has {has}. Correct them, or --set data.task={MULTILABEL} reads any "
            "number of labels per image"
        )
    return table.drop(columns=classes).assign(label=[classes[k] for k in flags.argmax(1)])


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
        if wanted:
            cells = _unwritten(cells)
        lists = [_is_list(cell) for cell in cells]
        if not wanted and not any(lists):
            _hint(cells, section, where, warnings)
            return None
        texts = [not is_list and not _is_missing(cell) for cell, is_list in zip(cells, lists, strict=True)]
        if not wanted and any(texts):
            raise DataError(
                f"{where}: the cell label of row {lists.index(True)} (counted from 0) is a list, and that of row "
                f"{texts.index(True)} is not; write all of them in one way, or --set data.task={MULTILABEL} reads any number of "
                "labels per image"
            )
        read = _of_lists(cells, lists, section, where, warnings)
        if not wanted and len(cells) and (read.targets.sum(1) == 1).all():
            warnings.append(
                f"{where}: each cell label is a list with exactly one label, which was read as any number of labels per image; "
                "write the labels without lists to have one class per image"
            )
        return read
    found = _flag_columns(table, names, where)
    almost = _almost_flags(table, names) if section.classes is None else {}
    if section.classes is not None:
        if lacking := [name for name in section.classes if name not in found]:
            if not wanted:
                return None
            why = _almost_flags(table, names).get(lacking[0])
            raise RequestError(
                f"data.classes: {where} has no column {lacking[0]!r} of 0 and 1 alone; {why or near(lacking[0], found)}"
            )
        found = {name: found[name] for name in section.classes}
    if not wanted and len(found) < SHORTEST_LIST:
        if len(found) + len(almost) >= SHORTEST_LIST:
            raise DataError(
                f"{where} has no column 'label', and these columns are not of 0 and 1 alone: {_listed(almost)}. Write 0 where an "
                "image does not have a label, and leave out images whose labels are not known"
            )
        return None
    if not found:
        why = f"; not read so: {_listed(almost)}" if almost else ""
        raise RequestError(
            f"{where} has no labels: data.task is {MULTILABEL}, which needs a column label that lists labels (a|b), or a column "
            f"of 0 and 1 for each class; its columns are {shown(', '.join(names))}{why}"
        )
    if section.classes is None:
        single = is_one_hot(np.stack(list(found.values()), 1)) and not wanted
        warnings.append(
            f"{where}: the columns {shortened(', '.join(found))} hold 0 and 1 alone and were read as labels"
            + (
                f"; each image has exactly one of them, and --set data.task={CLASSIFICATION} reads one class per image"
                * single
            )
        )
        check_alike(tuple(found), section, where)
    if almost:
        warnings.append(
            f"{where}: {len(almost):,} more column{'s' * (len(almost) > 1)} may be labels, not read so: {_listed(almost)}"
        )
    return LabelSets(np.stack(list(found.values()), 1), check_names(tuple(found), where), tuple(found))


def _of_lists(
    cells: Sequence[Any], lists: Sequence[bool], section: DataSection, where: str, warnings: list[str]
) -> LabelSets:
    if (vectors := _vectors(cells, lists)) is not None:
        amount = int(vectors.shape[1])
        warnings.append(
            f"{where}: each cell label has {amount} numbers, 0 or 1, which were read as a label each that an image has or has not"
        )
        return LabelSets(vectors, name_flags(amount, None, section, where), ("label",), section.classes is not None)
    texts = [str(cell) for cell, is_list in zip(cells, lists, strict=True) if not is_list and not _is_missing(cell)]
    separator = next((each for each in SEPARATORS if any(each in text for text in texts)), None)
    written = {*map(tidy, texts)}
    blank = [name for name in sorted(written) if len(name.split()) > 1 and name.lower() not in NOTHING]
    joined = [name for name in blank if all(part in written for part in name.split())]
    if separator is None and joined and len(joined) == len(blank):
        separator = " "
        warnings.append(
            f"{where}: labels are parted by blanks, since all that have some, such as {joined[0]}, consist of others"
        )
    elif separator is None and joined:
        warnings.append(
            f"{where}: {len(joined):,} label{'s look' if len(joined) > 1 else ' looks'} like several others with blanks between, "
            f"such as {joined[0]}, and others, such as {next(name for name in blank if name not in joined)}, do not; write | "
            "between the labels of an image"
        )
    nothing = 0
    named: list[list[str]] = []
    for row, (cell, is_list) in enumerate(zip(cells, lists, strict=True)):
        words = _words(cell, is_list, separator or SEPARATORS[0], where, row)
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
    check_alike(sort_names(every), section, where)
    if joined := [word for word in sort_names(every) if _is_joined(word, every)]:
        parts = ", ".join(SEPARATORS[:-1])
        warnings.append(
            f"{where}: {len(joined):,} label{'s look' if len(joined) > 1 else ' looks'} like several others in one, such as "
            f"{shortened(joined[0])}; one of {parts} and a comma, the same in all cells, parts the labels of an image"
        )
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
        text = "" if _is_missing(cell) else str(cell)
        whole = separator == " " and tidy(text).lower() in NOTHING
        parts = [text] if whole else text.split(None if separator == " " else separator)
        parts = [] if not any(tidy(part) for part in parts) else parts
    words = [tidy(part) for part in parts]
    if "" in words:
        raise DataError(
            f"{where}: the cell label of row {row} (counted from 0), {shortened(str(cell))!r}, has an empty label; remove a "
            f"separator ({separator}) or write the label"
        )
    return list(dict.fromkeys(words))


def _unwritten(cells: Sequence[Any]) -> list[Any]:
    """The same cells; where all that are text are lists as programs write them, ``['a', 'b']``, these lists."""
    texts = [cell for cell in cells if isinstance(cell, str) and cell.strip()]
    if not texts or not all(map(BRACKETS.fullmatch, texts)):
        return list(cells)
    return [_items(cell) if isinstance(cell, str) and cell.strip() else cell for cell in cells]


def _items(text: str) -> list[str]:
    """What is in a list that was written as text."""
    whole = BRACKETS.fullmatch(text)
    return ["".join(groups) for groups in ITEM.findall(whole[1] if whole else "")]


def _vectors(cells: Sequence[Any], lists: Sequence[bool]) -> np.ndarray | None:
    """Lists of one length that have nothing but 0 and 1, as uint8 [N, K]; None for any other cells."""
    if not all(lists) or len({len(cell) for cell in cells}) != 1 or len(cells[0]) < SHORTEST_LIST:
        return None
    flags = [[FLAGS.get(str(each).strip().lower()) for each in cell] for cell in cells]
    return None if any(None in row for row in flags) else np.array(flags, dtype=np.uint8)


def _is_joined(name: str, names: Collection[str]) -> bool:
    """Whether a name consists of other names and what may part them."""
    parts = OTHERS.split(name)
    return len(parts) > 1 and all(part in names for part in parts)


def _flags_in(table: pd.DataFrame, names: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The columns that may hold 0 and 1, with their cells as text in lower case."""
    for place, name in enumerate(names):
        if name not in ("path", "split", "group", "label", ""):
            # Text that is not UTF-8 fails, as several kinds: no column of 0 and 1.
            with suppress(Exception):
                yield name, [str(cell).strip().lower() for cell in table.iloc[:, place].tolist()]


def _flag_columns(table: pd.DataFrame, names: Sequence[str], where: str) -> dict[str, np.ndarray]:
    """The columns that hold 0 and 1 alone, both of them, uint8 [N], by name.

    Raises:
        DataError: two of them have one name.
    """
    found: dict[str, np.ndarray] = {}
    for name, cells in _flags_in(table, names):
        flags = [FLAGS.get(cell) for cell in cells]
        if None not in flags and len({*flags}) == 2:
            if name in found:
                raise DataError(f"{where} has the column {name} twice; rename one of them")
            found[name] = np.array(flags, dtype=np.uint8)
    return found


def _almost_flags(table: pd.DataFrame, names: Sequence[str]) -> dict[str, str]:
    """The columns that hold 0, 1 and what stands for an unknown label, and those that hold one of 0 and 1; and why each is
    not read as a label."""
    found = {}
    for name, cells in _flags_in(table, names):
        values = {*cells}
        if {FLAGS.get(value) for value in values} in ({0}, {1}):
            found[name] = f"all rows have {cells[0]}"
        elif values == {"-1", "1"}:
            found[name] = "it has -1 and 1; write 0 in place of -1 if that says that an image does not have the label"
        elif 1 in {FLAGS.get(value) for value in values} and values <= FLAGS.keys() | UNKNOWN and values & UNKNOWN:
            row = next(row for row, cell in enumerate(cells) if cell in UNKNOWN)
            found[name] = (
                f"row {row}, counted from 0, {f'has {cells[row]}' if cells[row] in ('-1', '-1.0') else 'is empty'}"
            )
    return found


def _listed(columns: Mapping[str, str]) -> str:
    """Columns and what is said of each; of many, the first ones."""
    said = [f"{shortened(name)} ({why})" for name, why in columns.items()]
    return listed(said, SHOWN)


def _hint(cells: Sequence[Any], section: DataSection, where: str, warnings: list[str]) -> None:
    """Say how to read cells that may list labels."""
    if section.task != "auto":
        return
    texts = [cell for cell in cells if isinstance(cell, str)]
    every = {tidy(cell) for cell in {*texts}}
    said = {
        "have | in them": {cell for cell in {*texts} if "|" in cell},
        "are lists": {cell for cell in {*texts} if BRACKETS.fullmatch(cell) and "[" in cell},
        "look like several others in one": {name for name in {*texts} if _is_joined(tidy(name), every)},
    }
    for words, found in said.items():
        if listed := [cell for cell in texts if cell in found]:
            warnings.append(
                f"{where}: {len(listed):,} labels {words}, such as {shortened(listed[0])}, and were read as one class each; "
                f"--set data.task={MULTILABEL} reads several labels per image"
            )
            return


def _is_list(cell: Any) -> bool:
    return isinstance(cell, (list, tuple, np.ndarray))


def _is_missing(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float) and cell != cell)


def _is_binary(labels: np.ndarray) -> bool:
    return labels.dtype.kind in "iubf" and bool(((labels == 0) | (labels == 1)).all())
