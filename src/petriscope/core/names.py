"""Names of splits and of classes: how these are cleaned, and which of them a person may have meant as one."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from petriscope.core.errors import DataError, shown

SPLITS = ("train", "val", "test")
_EDGES = re.compile(r"^[\s\ufeff\u200b]+|[\s\ufeff\u200b]+$")
_GAPS = re.compile(r"(?<=\w)[\s_-]+(?=\w)")
_NUMBERED = re.compile(r"(?P<number>\d+)(?:\s*[:=,;.)\t-]\s*|\s+)(?P<name>\S.*)")
_NUMBERED_AFTER = re.compile(r"(?P<name>\S.*?)\s*[:=,;\t]\s*(?P<number>\d+)")
_TRUTH = {"1": "1", "true": "1", "yes": "1", "0": "0", "false": "0", "no": "0"}
_WHOLE = re.compile(r"\+?0*([0-9]+?)(?:\.0*)?")


def tidy(name: str) -> str:
    """The name in composed Unicode (NFC), without white space and byte order marks around it."""
    return _EDGES.sub("", unicodedata.normalize("NFC", name))


def place_of(name: str, names: Sequence[str]) -> int | None:
    """The index of a name among names that may not be tidy, as those of older models; None if it is not there."""
    if name in names:
        return names.index(name)
    tidied = list(map(tidy, names))
    return tidied.index(tidy(name)) if tidy(name) in tidied else None


def names_in_lines(text: str, where: str) -> list[str]:
    """The class names in a text, one per line, from class 0 on. Where all lines have numbers, these say the order, and are left
    out.

    Raises:
        DataError: all lines are numbered, but not from 0.
    """
    names = [name for line in text.splitlines() if (name := tidy(line))]
    for pattern in (_NUMBERED, _NUMBERED_AFTER):
        found = [match for name in names if (match := pattern.fullmatch(name))]
        if len(names) < 2 or len(found) < len(names) or len({match["name"] for match in found}) < len(names):
            continue
        found.sort(key=lambda match: int(match["number"]))
        numbers = [int(match["number"]) for match in found]
        if numbers == [*range(len(names))]:
            return [tidy(match["name"]) for match in found]
        if numbers == [*range(1, len(names) + 1)]:
            raise DataError(
                f"{where} numbers its classes from 1 ({found[0][0]}); it must name them from 0, one per line, such as the "
                "background of masks first"
            )
    return names


def check_class_names(names: Sequence[object]) -> None:
    """Check the class names in a file from outside.

    Raises:
        ValueError: there are none, one is not text that UTF-8 can hold, or two are equal.
    """
    if not names:
        raise ValueError("there are no classes")
    seen = set()
    for name in names:
        if not isinstance(name, str) or re.search("[\ud800-\udfff]", name):
            raise ValueError(f"{shown(name)} is no name of a class")
        if name in seen:
            raise ValueError(f"two classes are called {shown(name)}")
        seen.add(name)


def label_text(labels: Sequence[str]) -> str:
    """The labels of an image as one text: ``none`` if it has none."""
    return ", ".join(labels) or "none"


def look_alike(names: Iterable[str]) -> tuple[str, str] | None:
    """The first two different names that differ in no more than case, width, white space, hyphens or the way that a whole number
    is written, such as ``1``, ``01``, ``+1`` and ``1.0``; or a truth value, if all are such: ``1``, ``True`` and ``yes``."""
    seen: dict[str, str] = {}
    keys = {name: _key(name) for name in names}
    if {*keys.values()} <= _TRUTH.keys():
        keys = {name: _TRUTH[key] for name, key in keys.items()}
    for name, key in keys.items():
        if seen.setdefault(key, name) != name:
            return seen[key], name
    return None


def _key(name: str) -> str:
    key = name.casefold()
    if not key.isascii():
        key = unicodedata.normalize("NFKC", name).casefold()
        key = "".join(char for char in key if unicodedata.category(char) != "Cf")
    key = _GAPS.sub(" ", _EDGES.sub("", key))
    whole = _WHOLE.fullmatch(key)
    return key if whole is None else whole[1]
