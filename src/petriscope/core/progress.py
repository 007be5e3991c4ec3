"""Progress: a bar with the time left on a terminal and in a notebook, a plain line on stderr every half minute elsewhere."""

from __future__ import annotations

import errno
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeVar

from petriscope.core.errors import PetriscopeError
from petriscope.core.files import readable
from petriscope.core.notebook import current_cell, in_notebook

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

T = TypeVar("T")
TimeLeft = Callable[[], float]  # seconds; 0 or less: what can be left out is left out, and said
BAR_EVERY = 0.1  # seconds
IN_NOTEBOOK_EVERY = 0.5  # seconds; each time, the output of the cell is sent to the browser
PLAIN_LINE_EVERY = 30.0  # seconds
SHOW_AFTER = 2.0  # seconds; work that takes less shows nothing

_silent = False  # whether this process leaves speaking to another
_display: RichProgress | None = None  # what is on the terminal: all bars that are shown at this moment


def unlimited() -> float:
    """`TimeLeft` of work that may take any time."""
    return math.inf


def say(text: str) -> None:
    """Write a line for people to stderr or into the output of a notebook's cell, above the bars if any are shown. If the
    stream is closed, the line is dropped and work continues."""
    with _lost():
        if _silent:
            return
        if (cell := current_cell()) is not None:
            cell.say(readable(text))
        elif _display is not None:
            _display.console.print(readable(text), markup=False, highlight=False, emoji=False, soft_wrap=True)
        elif sys.stderr is not None:
            sys.stderr.write(readable(text) + "\n")
            sys.stderr.flush()


def deliver(text: str) -> None:
    """Write a result to stdout.

    Raises:
        PetriscopeError: it cannot be written.
    """
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, "it is closed")
        sys.stdout.write(readable(text))
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise PetriscopeError(f"the result cannot be written to the standard output: {why}") from None


def leave_stdout() -> None:
    """Give up what stdout could not take: what is left in its buffer would be an error again when Python ends."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def silence(silent: bool) -> None:
    """Say nothing from now on, and show no bars: another process does the same work and says so."""
    global _silent
    _silent = silent


@contextmanager
def _lost() -> Iterator[None]:
    """Pass over errors of a terminal that was closed, or of a full disk under stderr."""
    global _display
    try:
        yield
    except (OSError, ValueError):
        _display = None


def duration(seconds: float) -> str:
    """Seconds in words: ``8.0 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class Progress:
    """Counts work done towards a total and shows it.

    Args:
        label: what is done.
        total: how much of it there is; 0 if that is not known.
        unit: what is counted.
        cost: the cost of the first ``count`` units, for units that do not all take equally long. The time left is
            estimated from it.
    """

    def __init__(
        self, label: str, total: int, unit: str = "images", cost: Callable[[int], float] = lambda count: count
    ) -> None:
        self.label, self.total, self.unit, self.cost = label, total, unit, cost
        self.done = self._before = 0
        self._draws = not _silent and (in_notebook() or _display is not None or _is_terminal())
        self._start = time.monotonic()
        self._next = self._start + SHOW_AFTER
        self._bar: TaskID | None = None

    def start_from(self, done: int) -> None:
        """Count ``done`` units as done before; they are left out of the estimate of the time left."""
        self.done = self._before = done

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count ``count`` more units as done; ``note`` is shown behind the time left."""
        self.done += count
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (PLAIN_LINE_EVERY if not self._draws else IN_NOTEBOOK_EVERY if in_notebook() else BAR_EVERY)
        parts = [f"{self.done:,} of {self.total:,} {self.unit}" if self.total else f"{self.done:,} {self.unit}"]
        if self.total:
            parts.append(f"{duration(self._seconds_left(now))} left")
        text = "  ".join([*parts, note] if note else parts)
        if self._draws:
            with _lost():
                self._show(text)
        else:
            say(f"{self.label}  {text}")

    def close(self) -> None:
        """Take the bar off the terminal, or out of the notebook."""
        global _display
        with _lost():
            if (cell := current_cell()) is not None:
                cell.take_off(self)
            if self._bar is not None and _display is not None:
                _display.remove_task(self._bar)
                if not _display.tasks:
                    _display.stop()
                    _display = None
        self._bar = None

    def _seconds_left(self, now: float) -> float:
        spent = self.cost(self.done) - self.cost(self._before)
        left = max(self.cost(self.total) - self.cost(self.done), 0)
        return (now - self._start) / max(spent, self.cost(1)) * left

    def _show(self, text: str) -> None:
        global _display
        if (cell := current_cell()) is not None:
            cell.show(self, self.label, self.done, self.total, text)
            return
        if _display is None:
            _display = _new_display()
            _display.start()
        if self._bar is None:
            self._bar = _display.add_task(self.label, total=self.total or None, text=text)
        _display.update(self._bar, completed=self.done, text=text, refresh=True)


def _is_terminal() -> bool:
    """Whether bars can be shown. Packages that carry parts of Petriscope do without rich, which draws them."""
    shows = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    return shows and find_spec("rich") is not None


def _new_display() -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as RichProgress

    # stdout is left alone: it may be a file that takes the results.
    return RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(24),
        TextColumn("{task.fields[text]}", markup=False),
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
    )


@contextmanager
def progress(label: str, total: int, unit: str = "images") -> Iterator[Progress]:
    """A `Progress` that is closed at the end."""
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
