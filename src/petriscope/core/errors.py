"""The errors that Petriscope raises on purpose. Each says what is wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class PetriscopeError(Exception):
    """The work failed: no disk space, no network, a diverged run."""

    exit_status = 1


class RequestError(PetriscopeError):
    """The request was wrong: an unknown recipe key, a missing file, a run folder that exists."""

    exit_status = 2


class DataError(RequestError):
    """The data cannot be used as they are: an unreadable image, a label out of range."""


class Interrupted(PetriscopeError):
    """Ctrl-C, or a request to end; what was done is kept."""

    exit_status = 130


def near(word: str, known: Iterable[str]) -> str:
    """Say which known names lie near an unknown one, or which there are."""
    names = sorted(known)
    close = get_close_matches(word, names, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "known: " + ", ".join(names) if names else "none are known"
