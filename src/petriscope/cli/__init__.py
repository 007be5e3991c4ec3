"""The command line: parse, call `petriscope.api`, print. Text for people goes to stderr, results to stdout."""

from __future__ import annotations

import os
import sys

from petriscope.cli.commands import app
from petriscope.core.errors import PetriscopeError


def main() -> None:
    """Run the command line. Exit status: 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted."""
    _settle_process()
    try:
        app()
    except PetriscopeError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _settle_process() -> None:
    """Settings that have to stand before torch is loaded."""
    # Idle OpenMP threads that spin slow a step many times over where another process wants the core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Large tensors on huge pages, where the system offers them: looking up a page is dear on some machines.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
