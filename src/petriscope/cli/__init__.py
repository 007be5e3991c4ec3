"""The command line: parse arguments, call `petriscope.api`, print. Results go to stdout, text for people to stderr."""

from __future__ import annotations

import os
import sys

from petriscope.cli.commands import app
from petriscope.core.errors import PetriscopeError, RequestError

OLD_OPTIONS = {"--sets": "--set-coverage", "--figure": "--metric", "--stress-pictures": "--stress-images"}


def main() -> None:
    """Run the command line. Exit status: 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted."""
    _settle_process()
    try:
        _check_options(sys.argv[1:])
        app()
    except PetriscopeError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_status)


def _check_options(words: list[str]) -> None:
    """Tell the new name of a renamed option.

    Raises:
        RequestError: an option has its old name.
    """
    for word in words:
        option = word.partition("=")[0]
        if option in OLD_OPTIONS:
            raise RequestError(f"the option {option} is now called {OLD_OPTIONS[option]}")


def _settle_process() -> None:
    """Environment variables that must be set before torch is imported."""
    # Idle OpenMP threads that spin make a step many times slower if another process needs the core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Use huge pages for large tensors if the system has them: looking up pages is expensive on some machines.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
