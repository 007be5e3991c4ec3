"""What is said, and how far work has come, in a notebook: one output per cell, which is written anew as work goes on."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any
from uuid import uuid4

from petriscope.core.errors import Interrupted

STYLE = "style='text-align: left; padding: 0 1em 0 0; white-space: pre-wrap'"
LINES = 200  # of a cell that are kept; the output is sent as a whole each time


class Cell:
    """The output of the cell that is executed.

    Args:
        request: by which the notebook asked for the execution.
    """

    def __init__(self, request: str) -> None:
        self.request = request
        self._lines: list[str] = []
        self._left_out = 0
        self._bars: dict[object, tuple[str, int, int, str]] = {}
        self._id = ""

    def say(self, text: str) -> None:
        """Add a line above the bars."""
        self._lines.append(text)
        self._left_out += max(0, len(self._lines) - LINES)
        del self._lines[:-LINES]
        self._write()

    def show(self, bar: object, label: str, done: int, total: int, text: str) -> None:
        """Show a bar, or how far it has come; ``total`` is 0 if it is not known."""
        self._bars[bar] = (label, done, total, text)
        self._write()

    def take_off(self, bar: object) -> None:
        if self._bars.pop(bar, None) is not None:
            self._write()

    def take_off_all(self) -> None:
        """Take off the bars of work that was interrupted."""
        if self._bars:
            self._bars.clear()
            self._write()

    def _write(self) -> None:
        from IPython.display import display, update_display

        content = {"text/html": self._html(), "text/plain": self._plain()}
        if self._id:
            update_display(content, display_id=self._id, raw=True)
        else:
            self._id = uuid4().hex
            display(content, display_id=self._id, raw=True)

    def _html(self) -> str:
        rows = [
            f"<tr><td {STYLE}>{escape(label)}</td>"
            f"<td {STYLE}><progress style='width: 16em' {f'value={done} max={total}' if total else ''}></progress></td>"
            f"<td {STYLE}>{escape(text)}</td></tr>"
            for label, done, total, text in self._bars.values()
        ]
        lines = f"<pre style='margin: 0; white-space: pre-wrap'>{escape(self._said())}</pre>" if self._lines else ""
        bars = f"<table style='margin: 0; font-size: inherit'>{''.join(rows)}</table>" if rows else ""
        return f"<div>{lines}{bars}</div>"

    def _plain(self) -> str:
        return "\n".join([self._said(), *(f"{label}  {text}" for label, _, _, text in self._bars.values())]).strip("\n")

    def _said(self) -> str:
        cut = [f"({self._left_out:,} earlier lines are not shown)"] if self._left_out else []
        return "\n".join([*cut, *self._lines])


_cell = Cell("")


def current_cell() -> Cell | None:
    """The output of the cell that is executed; None where this process is not the kernel of a notebook."""
    global _cell
    shell = _shell()
    if shell is None:
        return None
    request = str(shell.get_parent().get("header", {}).get("msg_id"))
    if _cell.request != request:
        _cell = Cell(request)
    return _cell


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook. IPython in a terminal is none."""
    return _shell() is not None


@contextmanager
def stoppable() -> Iterator[None]:
    """Within, or in a function that is decorated with it, interrupting a cell leads to an error that is shown as one sentence.
    Outside notebooks, Ctrl-C behaves as usual.

    Raises:
        Interrupted: the cell was interrupted.
    """
    try:
        yield
    except KeyboardInterrupt:
        if (cell := current_cell()) is None:
            raise
        cell.take_off_all()
        raise Interrupted("stopped before it was done; the same call begins anew") from None


@contextmanager
def without_widgets() -> Iterator[None]:
    """Within, a library that imports tqdm in a notebook does not make it warn of a package that it would draw bars with."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        yield


def _shell() -> Any:
    ask = getattr(sys.modules.get("IPython"), "get_ipython", None)  # it is loaded where there is a kernel
    shell = None if ask is None else ask()
    return shell if getattr(shell, "kernel", None) is not None else None
