"""Progress on stderr: a bar with time left on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
PLAIN_LINE_EVERY = 30.0  # seconds
SHOW_AFTER = 2.0  # work that ends sooner shows nothing


def say(text: str) -> None:
    """A line for people, on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def duration(seconds: float) -> str:
    """Seconds as people say them: ``8 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class Progress:
    """Counts work done towards a total and shows it, at most ten times a second.

    Args:
        label: what is done.
        total: how much of it there is.
        unit: what is counted.
        cost: of the first so many, where they do not all take equally long.
    """

    def __init__(
        self, label: str, total: int, unit: str = "images", cost: Callable[[int], float] = lambda count: count
    ) -> None:
        self.label, self.total, self.unit, self.cost = label, total, unit, cost
        self.done = self._before = 0
        self._terminal = sys.stderr.isatty()
        self._start = time.monotonic()
        self._next = self._start + SHOW_AFTER
        self._shown = False

    def start_from(self, done: int) -> None:
        """Some of the work was done before, and says nothing of the time left."""
        self.done = self._before = done

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (0.1 if self._terminal else PLAIN_LINE_EVERY)
        elapsed = now - self._start
        spent = self.cost(self.done) - self.cost(self._before)
        left = elapsed / max(spent, self.cost(1)) * max(self.cost(self.total) - self.cost(self.done), 0)
        text = f"{self.label}  {self.done:,} of {self.total:,} {self.unit}  {duration(left)} left"
        text += f"  {note}" if note else ""
        if self._terminal:
            filled = round(24 * min(self.done / max(self.total, 1), 1))
            sys.stderr.write("\r\x1b[2K" + "━" * filled + "─" * (24 - filled) + " " + text)
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()
        self._shown = True

    def close(self) -> None:
        if self._shown and self._terminal:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()


@contextmanager
def progress(label: str, total: int, unit: str = "images") -> Iterator[Progress]:
    bar = Progress(label, total, unit)
    try:
        yield bar
    finally:
        bar.close()


def track(items: Iterable[T], label: str, total: int | None = None, unit: str = "images") -> Iterator[T]:
    """Yield ``items``, showing progress."""
    count = total if total is not None else len(items) if isinstance(items, Sized) else 0
    with progress(label, count, unit) as bar:
        for item in items:
            yield item
            bar.advance()
