"""The errors that Petriscope raises on purpose. Their messages say what is wrong, where, and what to do."""

from __future__ import annotations

import contextlib
import linecache
import re
import shlex
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import takewhile
from os import PathLike, fspath
from pathlib import Path
from traceback import walk_tb

OWN = (str(Path(__file__).parents[1]), contextlib.__file__)  # files whose lines are not the user's


class PetriscopeError(Exception):
    """The work failed, for example for lack of disk space or network, or because training diverged."""

    exit_status = 1

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows in place of a traceback, which IPython asks for by this name: the sentence, and the line that
        called Petriscope."""
        said = [f"{type(self).__name__}: {self}"]
        places = [(frame.f_code.co_filename, line) for frame, line in walk_tb(self.__traceback__)]
        before = list(takewhile(lambda place: not place[0].startswith(OWN), places))
        text = linecache.getline(*before[-1]).strip() if before else ""
        return [*said, f"  in: {text}"] if text else said


class RequestError(PetriscopeError):
    """The request was wrong, for example an unknown key in a recipe, a missing file, or a run folder that exists."""

    exit_status = 2


class DataError(RequestError):
    """The data cannot be used, for example because of an unreadable image or a label out of range."""


class MissingSource(RequestError):
    """There is no source of data of that name or path."""


class Diverged(PetriscopeError):
    """Training led to numbers that are not finite."""


class Interrupted(PetriscopeError):
    """Ctrl-C, or a request to end; what was done is kept."""

    exit_status = 130


def shortened(text: str, length: int = 80) -> str:
    """A text from outside as it stands in a message: cut to so many characters."""
    return text if len(text) <= length else f"{text[: length - 4]} ..."


def listed(words: Sequence[str], most: int = 5) -> str:
    """Words as a list in a message: the first ones, and how many more there are."""
    return ", ".join(words[:most]) + (f" and {len(words) - most:,} more" if len(words) > most else "")


def shown(value: object) -> str:
    """A value from outside as it is quoted in a message: its ``repr``, shortened."""
    try:
        return shortened(repr(value))
    except (ValueError, RecursionError):  # a whole number with more digits than Python prints, or too deep a nesting
        return f"a value of type {type(value).__name__} too large to print"


def command(*words: str | PathLike[str]) -> str:
    """A command of Petriscope to copy from a message, quoted for a shell."""
    return shlex.join(["petriscope", *(fspath(word) for word in words)])


def hide_password(word: str) -> str:
    """A word of a command line, without the password of a URL such as ``postgresql://USER:PASSWORD@HOST/DATABASE``."""
    return re.sub(r"(://[^/?#@:]*:)[^/?#]*@", r"\1***@", word)


def near(word: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the known names that are similar, whatever their case, or else all of them."""
    names = sorted(known)
    close = similar(word, names)
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "known: " + ", ".join(names) if names else "none are known"


def similar(word: str, known: Iterable[str]) -> list[str]:
    """Up to three known names that are similar, the most similar first."""
    names = {name.casefold(): name for name in known}
    if (key := word.casefold()) in names:
        return [names[key]]
    return [names[key] for key in get_close_matches(key, names, n=3, cutoff=0.5)]
