"""Progress: on a terminal, elsewhere, and not at all for short work."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr

import pytest

from petriscope.core import progress as module
from petriscope.core.progress import Progress, progress, say, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module.time, "monotonic", clock)
    return clock


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")


def test_short_work_shows_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in track(range(5), "counting"):
        clock.now += 0.3
    assert capsys.readouterr().err == ""


def test_a_plain_line_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in track(range(100), "counting"):
        clock.now += 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "counting  2 of 100 images  1 min 38 s left"
    assert [line.split()[1] for line in lines] == ["2", "32", "62", "92"]


def test_what_was_done_before_is_no_measure_of_speed(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress("training", 100, "steps")
    bar.start_from(90)
    clock.now = 10.0
    bar.advance(5)
    assert "95 of 100 steps  10 s left" in capsys.readouterr().err


def test_an_unknown_total(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in track(iter(range(3)), "counting"):
        clock.now += 1
    assert capsys.readouterr().err == "counting  2 images\n"


def test_a_bar_on_a_terminal_goes_when_it_is_done(clock: Clock) -> None:
    with redirect_stderr(Terminal()) as terminal:
        with progress("counting [all]", 10) as bar:
            for _ in range(3):
                clock.now += 1
                bar.advance(1, "so far so good")
            shown = terminal.getvalue()
        closed = terminal.getvalue()
        assert sys.stderr is terminal
        say("done")
    assert "counting [all]" in shown and "━" in shown
    assert "3 of 10 images  7.0 s left  so far so good" in shown
    assert closed.removeprefix(shown).count("\x1b[2K") == 1  # the line was erased
    assert terminal.getvalue() == closed + "done\n"


def test_say_writes_above_the_bars(clock: Clock) -> None:
    line = "a long line, which the terminal and nobody else should wrap: " + "/folder" * 20
    with redirect_stderr(Terminal()) as terminal, progress("outer", 10) as outer:
        clock.now += 3
        outer.advance()
        with progress("inner", 10) as inner:
            clock.now += 3
            inner.advance()
            before = terminal.getvalue()
            say(line)
            after = terminal.getvalue().removeprefix(before)
        clock.now += 3
        outer.advance()
        end = terminal.getvalue()
    assert f"{line}\n" in after
    assert after.index(line) < after.index("outer") < after.index("inner")
    assert "2 of 10" in end


def test_results_on_stdout_are_left_alone(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with redirect_stderr(Terminal()) as terminal, progress("counting", 10) as bar:
        clock.now += 3
        bar.advance()
        print("{}")  # noqa: T201
    assert capsys.readouterr().out == "{}\n"
    assert "1 of 10" in terminal.getvalue() and "{}" not in terminal.getvalue()


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with redirect_stderr(Terminal()) as terminal, progress("counting", 10) as bar:
        clock.now += 3
        bar.advance()
    assert terminal.getvalue() == "counting  1 of 10 images  27 s left\n"


@pytest.mark.parametrize("gone", [OSError(5, "Input/output error"), ValueError("I/O operation on closed file"), None])
def test_work_goes_on_where_the_display_is_lost(monkeypatch, gone):
    class Gone(io.StringIO):
        def isatty(self):
            return True

        def write(self, text):
            raise gone

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Gone() if gone else None)
    monkeypatch.setattr("petriscope.core.progress.SHOW_AFTER", 0)
    assert list(track(range(3), "label")) == [0, 1, 2]
    say("after it")
