"""The command line: parse arguments, call `petriscope.api`, print. Results go to stdout, text for people to stderr."""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path

from typer.main import get_command

from petriscope.cli.commands import app
from petriscope.core.device import SMALLER, is_out_of_memory
from petriscope.core.errors import PetriscopeError, RequestError, shortened
from petriscope.core.launch import command, launch
from petriscope.core.progress import leave_stdout, say, silence
from petriscope.core.worker import end_with_parent

OLD_OPTIONS = {"--sets": "--set-coverage", "--figure": "--metric", "--stress-pictures": "--stress-images"}
SETTING = re.compile(r"[a-z_]+(\.\w+)*=")


@command()
def main() -> None:
    """Run the command line. Exit status: 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted."""
    _settle_streams()
    _settle_process()
    end_with_parent()
    try:
        _check_processes(sys.argv[1:])
        _check_options(sys.argv[1:])
        app()
    except PetriscopeError as error:
        _end(str(error), error.exit_status)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _end(f"the memory was not enough ({shortened(str(error), 160)}); {SMALLER}", PetriscopeError.exit_status)
    except OSError as error:
        _end(f"{error.filename or 'the system says'}: {error.strerror or error}", PetriscopeError.exit_status)


def _end(message: str, status: int) -> None:
    say(f"error: {message}{_about_settings(message, sys.argv[1:2])}")
    leave_stdout()
    sys.exit(status)


def _about_settings(message: str, name: list[str]) -> str:
    """A sentence for a message that asks for ``--set data.KEY`` in a command that does not take it; or else nothing."""
    if "--set data." not in message or "petriscope " in message:  # the latter is a whole command, of another name
        return ""
    known = getattr(get_command(app), "commands", {})
    if not {*name} & known.keys() or any("--set" in option.opts for option in known[name[0]].params):
        return ""
    return (
        f". {name[0]} has no --set: it reads images as the recipe of the model says; change the files, or train with it"
    )


def _settle_streams() -> None:
    """Make the standard streams fit to write to, whatever the shell, the service or the terminal gave."""
    # If one is closed, the next file that is opened gets its number, and what libraries print would go into that file.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    if sys.stdout is None:  # a result that goes nowhere is an error, for all who write one
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    # Results in files and pipes are in UTF-8 everywhere; a terminal shows what it can.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", encoding=None if stream.isatty() else "utf-8")


def _check_processes(words: list[str]) -> None:
    """Leave speaking to the first of several processes.

    Raises:
        RequestError: they were started for a command that runs in one process.
    """
    started = launch()
    silence(started.rank > 0)
    if started.size > 1 and words[:1] not in (["train"], ["--help"], ["--version"]):
        raise RequestError(
            f"torchrun started {started.size} processes, and only train works in several; start petriscope without torchrun"
        )


def _check_options(words: list[str]) -> None:
    """Tell the new name of a renamed option, and how several settings are written.

    Raises:
        RequestError: an option has its old name, or one ``--set`` is followed by several settings.
    """
    for word in words:
        option = word.partition("=")[0]
        if option in OLD_OPTIONS:
            raise RequestError(f"the option {option} is now called {OLD_OPTIONS[option]}")
    for option, first, second in zip(words, words[1:], words[2:], strict=False):
        if option == "--set" and "=" in first and SETTING.match(second) and not Path(second).exists():
            raise RequestError(f"--set takes one setting; write it before each: --set {first} --set {second}")


def _settle_process() -> None:
    """Environment variables that must be set before torch is imported."""
    # Idle OpenMP threads that spin make a step many times slower if another process needs the core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Use huge pages for large tensors if the system has them: looking up pages is expensive on some machines.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
