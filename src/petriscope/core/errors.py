"""The errors that Petriscope raises on purpose. Their messages say what is wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class PetriscopeError(Exception):
    """The work failed, for example for lack of disk space or network, or because training diverged."""

    exit_status = 1


class RequestError(PetriscopeError):
    """The request was wrong, for example an unknown key in a recipe, a missing file, or a run folder that exists."""

    exit_status = 2


class DataError(RequestError):
    """The data cannot be used, for example because of an unreadable image or a label out of range."""


class Interrupted(PetriscopeError):
    """Ctrl-C, or a request to end; what was done is kept."""

    exit_status = 130


def near(word: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the known names that are similar, or else all of them."""
    names = sorted(known)
    close = get_close_matches(word, names, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "known: " + ", ".join(names) if names else "none are known"
