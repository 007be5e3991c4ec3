"""What of a source is left out, counted by its reason, and the sentence that says so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SHOWN = 6  # kinds of what was left out that a sentence names


@dataclass(frozen=True)
class Omission:
    """What was left out for one reason.

    Args:
        reason: a noun, or why it cannot be used.
        count: how many.
        first: the name of the first.
    """

    reason: str
    count: int
    first: str


class LeftOutSentence(str):
    """A warning to the user that says what was left out, and knows it by reason."""

    omissions: tuple[Omission, ...]

    def __new__(cls, text: str, omissions: Iterable[Omission]) -> LeftOutSentence:
        out = super().__new__(cls, text)
        out.omissions = tuple(omissions)
        return out


class LeftOut:
    """Collects what is left out: how many of each kind, and the first of them."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[int, str]] = {}

    def add(self, kind: str, name: str, count: int = 1) -> None:
        """
        Args:
            kind: a noun, with ``{s}`` where the plural has an s.
            name: the path of one below the source.
        """
        so_far, first = self._kinds.get(kind, (0, name))
        self._kinds[kind] = (so_far + count, first)

    def __bool__(self) -> bool:
        return bool(self._kinds)

    def sentences(self, source: Path | str) -> list[str]:
        """One sentence for the user, or none."""
        return [self.sentence(f"{source}: left out {self.listed()}")] if self else []

    def sentence(self, text: str) -> LeftOutSentence:
        """A sentence in other words."""
        kinds = (Omission(kind.replace("{s}", "s"), count, first) for kind, (count, first) in self._sorted())
        return LeftOutSentence(text, kinds)

    def listed(self) -> str:
        """The kinds with their counts and the first of each."""
        kinds = self._sorted()
        parts = [
            f"{count:,} {kind.replace('{s}', '' if count == 1 else 's')} ({first})"
            for kind, (count, first) in kinds[:SHOWN]
        ]
        if rest := kinds[SHOWN:]:
            parts.append(f"{sum(count for _, (count, _) in rest):,} others ({rest[0][1][1]})")
        return ", ".join(parts)

    def _sorted(self) -> list[tuple[str, tuple[int, str]]]:
        return sorted(self._kinds.items(), key=lambda item: -item[1][0])


def omissions_in(warnings: Iterable[str]) -> list[Omission]:
    """What the sentences among ``warnings`` left out."""
    return [each for warning in warnings if isinstance(warning, LeftOutSentence) for each in warning.omissions]
