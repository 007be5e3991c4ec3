"""Convert labels, numbers or names, to class indices."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from petriscope.core.errors import DataError, RequestError, near, shortened, shown
from petriscope.core.names import look_alike, tidy
from petriscope.core.recipe import DataSection

MAX_CLASSES = 10_000
WHOLE = re.compile(r"-?[0-9]+")
# What programs write for no value, and people for no label, in lower case.
MISSING = ("nan", "null", "na", "n/a", "<na>", "#n/a", "nat", "unlabeled", "unlabelled", "unannotated", "unsorted")
_WHOLE_FLOAT = re.compile(r"(-?[0-9]+)\.0*")
MAX_NAME = 255  # characters of a class name


def check_numbers(labels: np.ndarray, where: str, warnings: list[str] | None = None) -> np.ndarray:
    """Check class numbers and convert them to int64 [N].

    Args:
        labels: [N] or [N, 1], integers, booleans or whole floats; or one-hot [N, K], a single 1 among zeros in each row.
        where: their name in messages, such as ``train_labels of cells.npz``.
        warnings: sentences for the user are added to it.

    Raises:
        DataError: several labels per image, or a label that is missing, not a whole number, negative or above `MAX_CLASSES`.
    """
    if labels.ndim > 2 or labels.ndim == 0:
        raise DataError(f"{where} has shape {list(labels.shape)}; labels are [N], one class number per image")
    if labels.ndim == 2 and labels.shape[1] != 1:
        if not is_one_hot(labels):
            raise DataError(
                f"{where} has shape {list(labels.shape)}: {labels.shape[1]} numbers per image, which are not one-hot. Give one "
                "class number per image, such as argmax(1) of probabilities; or 0 and 1 for any number of labels per image"
            )
        if warnings is not None:
            warnings.append(f"{where} is one-hot; the class numbers 0 to {labels.shape[1] - 1} were read from it")
        labels = labels.argmax(1)
    labels = labels.reshape(-1)
    if labels.dtype.kind == "f":
        broken = np.flatnonzero(~np.isfinite(labels))
        if len(broken):
            raise DataError(f"{where}: the label of image {broken[0]} is {labels[broken[0]]}; give it a class number")
        broken = np.flatnonzero(labels != np.floor(labels))
        if len(broken):
            raise DataError(f"{where}: the label of image {broken[0]} is {labels[broken[0]]}, not a whole number")
    elif labels.dtype.kind not in "iub":
        raise DataError(f"{where} has type {labels.dtype}; labels are whole numbers from 0")
    for wrong, why in (
        (labels < 0, "negative"),
        (labels >= MAX_CLASSES, f"beyond the {MAX_CLASSES:,} classes allowed"),
    ):
        if len(at := np.flatnonzero(wrong)):
            raise DataError(
                f"{where}: label {labels[at[0]]} of image {at[0]} is out of range ({why}); classes count from 0"
            )
    return labels.astype(np.int64)


def is_one_hot(labels: np.ndarray) -> bool:
    """Whether labels, [N, K], have a single 1 among zeros in each row."""
    if labels.dtype.kind not in "iubf" or not labels.size:
        return False
    return bool(((labels == 0) | (labels == 1)).all() and ((labels == 1).sum(1) == 1).all())


def name_numbers(
    labels: dict[str, np.ndarray], names: Sequence[str] | None, section: DataSection, where: str
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The class numbers of all splits, and the names of the classes.

    Args:
        labels: split -> int64 [N].
        names: the names of the classes in the source; None if it has only numbers, which ``section.classes`` may name.

    Raises:
        DataError: a label is out of range.
        RequestError: ``section.classes`` does not fit.
    """
    count = max((int(part.max()) + 1 for part in labels.values() if len(part)), default=0)
    if names is not None:
        names = check_names(names, where)
        check_alike(names, section, where)
        for split, part in labels.items():
            if len(at := np.flatnonzero(part >= len(names))):
                raise DataError(
                    f"{where}: label {part[at[0]]} of {split} image {at[0]} is out of range: "
                    f"there are {len(names)} classes ({', '.join(names)}), counted from 0"
                )
        if section.classes is None:
            return labels, tuple(names)
        order = _order(names, section.classes, where)
        return {split: order[part] for split, part in labels.items()}, section.classes
    if section.classes is None:
        return labels, tuple(str(number) for number in range(count))
    given = len(check_names(section.classes, "data.classes"))
    # Val and test may lack the last classes, but every class needs training images.
    if given < count or (given > count and not set(labels) <= {"test", "val"}):
        raise RequestError(f"data.classes names {given} classes; the labels of {where} need {count} (0 to {count - 1})")
    used = sorted({int(label) for part in labels.values() for label in np.unique(part)})
    order = _order_of_numbers(used, section.classes, where)
    return {split: order[part] for split, part in labels.items()}, section.classes


def index_names(
    names: dict[str, Sequence[str]], section: DataSection, where: str
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The class indices of all splits, int64 [N], from one name per image. The classes are the names in train, as
    `petriscope.core.names.tidy` writes them.

    Raises:
        DataError: val or test has a class that train lacks; two names look alike; or there are more than `MAX_CLASSES`.
        RequestError: ``section.classes`` lacks a class of the source.
    """
    tidied = {name: tidy(name) for part in names.values() for name in {*part}}
    names = {split: [tidied[name] for name in part] for split, part in names.items()}
    every = {*tidied.values()}
    _check_length(every, where)
    if len(every) > MAX_CLASSES:
        raise DataError(f"{where} has {len(every):,} different labels; at most {MAX_CLASSES:,} classes are allowed")
    check_alike(sort_names(every), section, where)
    base = names.get("train") or names.get("all")
    classes = sort_names(set(base) if base else every)
    for split, part in names.items():
        if unknown := sort_names(set(part) - set(classes)):
            raise DataError(
                f"{where}: {split} has the class{'es' if len(unknown) > 1 else ''} {', '.join(unknown)}, which train "
                f"lacks; {near(unknown[0], classes)} Rename it, or add training images of it"
            )
    if section.classes is not None:
        _order(classes, section.classes, where)
        classes = section.classes
    index = {name: number for number, name in enumerate(classes)}
    return {split: np.array([index[name] for name in part], dtype=np.int64) for split, part in names.items()}, classes


def text_numbers(labels: Sequence[str], names: Sequence[str] | None, where: str) -> np.ndarray | None:
    """Labels that are written as text, as class numbers, int64 [N]; None if they are names. They are numbers if they are whole,
    and run from 0 without a gap or index ``names``, which are the classes where these are known.

    Raises:
        DataError: all are whole numbers, and one is negative.
    """
    if not all(WHOLE.fullmatch(label) for label in labels):
        return None
    for row, label in enumerate(labels):
        if label.startswith("-"):
            raise DataError(
                f"{where}: label {shortened(label)} of image {row} is negative; write names, or numbers from 0"
            )
    found = {*labels}
    counted = set(map(str, range(len(found))))
    if names is not None and not found & {*names}:
        counted = set(map(str, range(len(names))))
    return np.array([int(label) for label in labels]) if found <= counted else None


def without_decimals(labels: Sequence[str]) -> list[str]:
    """Whole numbers without decimals, where all are whole numbers: a column of them with empty cells is often one of floats."""
    if all(not value or WHOLE.fullmatch(value) or _WHOLE_FLOAT.fullmatch(value) for value in labels):
        return [_WHOLE_FLOAT.sub(r"\1", value) for value in labels]
    return list(labels)


def say_missing(
    labels: Sequence[str], classes: Sequence[str], section: DataSection, where: str, folders: bool = False
) -> list[str]:
    """Sentences on classes whose names mean that there is no label, unless ``data.classes`` lists them.

    Args:
        labels: of all images; from rows of a table, or from ``folders``.
    """
    if section.classes is not None or not any(name.casefold() in MISSING for name in classes):
        return []
    counts = Counter(label for label in labels if label.casefold() in MISSING)
    if folders:
        return [
            f"{where}: {count:,} image{'s' if count > 1 else ''} in {label} were read as of a class; if {label} means that they "
            "have none, move it out of the source"
            for label, count in counts.items()
        ]
    return [
        f"{where}: {count:,} label{'s are' if count > 1 else ' is'} {label}, first in row {labels.index(label)} (counted from "
        "0), which was read as a class; if it means that there is none, leave these images out"
        for label, count in counts.items()
    ]


def sort_names(names: set[str]) -> tuple[str, ...]:
    """Sort names; if all are numbers, by value, so that 10 comes after 9."""
    if all(name.isascii() and name.isdigit() for name in names):  # int() refuses numbers of thousands of digits
        return tuple(sorted(names, key=lambda name: (len(name.lstrip("0")), name.lstrip("0"), name)))
    return tuple(sorted(names))


def check_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Check that no name is empty or occurs twice, and return the names as `petriscope.core.names.tidy` writes them.

    Raises:
        RequestError: a name is empty or occurs twice.
    """
    out = tuple(map(tidy, names))
    if "" in out:
        raise RequestError(f"{where} has an empty class name")
    _check_length(out, where)
    if twice := [name for name, count in Counter(out).items() if count > 1]:
        raise RequestError(f"{where} has the class {twice[0]!r} twice")
    return out


def _check_length(names: Iterable[str], where: str) -> None:
    if long := [name for name in names if len(name) > MAX_NAME]:
        raise DataError(
            f"{where} has a class name of {len(long[0]):,} characters, {shown(long[0])}; at most {MAX_NAME} are allowed"
        )


def check_alike(names: Sequence[str], section: DataSection, where: str) -> None:
    """Refuse names that a person may have meant as one, unless ``data.classes`` lists what the classes are."""
    if section.classes is None and (pair := look_alike(names)) is not None:
        raise DataError(
            f"{where} has the classes {pair[0]!r} and {pair[1]!r}, which look alike; spell them alike if they are one "
            "class, or else list all classes in data.classes"
        )


def _order_of_numbers(used: Sequence[int], classes: Sequence[str], where: str) -> np.ndarray:
    """The index of each number in ``data.classes``, which names the numbers from 0 on. If it lists these numbers themselves, it
    gives their order.

    Raises:
        RequestError: it calls one number by another.
    """
    numbers = [str(number) for number in range(len(classes))]
    if {*classes} == {*numbers}:
        return np.array([list(classes).index(number) for number in numbers], dtype=np.int64)
    if (at := next((each for each in used if str(each) in classes and classes[each] != str(each)), None)) is not None:
        raise RequestError(
            f"data.classes calls label {at} of {where} {classes[at]!r}, and another label {str(at)!r}; labels are numbers that "
            f"count from 0 here, so it is not clear what {at} means. Use names that are no numbers, such as 'grade {classes[at]}'"
        )
    return np.arange(len(classes))


def _order(names: Sequence[str], wanted: Sequence[str], where: str) -> np.ndarray:
    """The index of each name of the source in ``data.classes``."""
    check_names(wanted, "data.classes")
    for name in names:
        if name not in wanted:
            raise RequestError(f"data.classes lacks the class {name!r} of {where}; {near(name, wanted)}")
    return np.array([list(wanted).index(name) for name in names], dtype=np.int64)
