"""How this process was started: alone, or by torchrun as one of several that train together."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from petriscope.core.errors import RequestError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


_began: tuple[float, float] | None = None


@contextmanager
def command() -> Iterator[None]:
    """Within, this process does a command, which begins now, before libraries are loaded."""
    global _began
    _began = time.monotonic(), processor_time()
    try:
        yield
    finally:
        _began = None


def beginning() -> tuple[float, float]:
    """When the command of this process began, by `time.monotonic` and `processor_time`; now, if it is no command, as in a
    notebook."""
    return _began or (time.monotonic(), processor_time())


def processor_time() -> float:
    """Seconds that this process and those that it started and waited for have used, all cores together."""
    others = os.times()
    return time.process_time() + others.children_user + others.children_system


@dataclass(frozen=True)
class Launch:
    """What torchrun says of a process.

    Args:
        rank, size: the number of this process, counted from 0, and how many there are.
        local_rank, local_size: the same for the processes on this machine.
        restarts: how often torchrun has started the processes again.
        by_torchrun: False: the process was started alone.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    restarts: int = 0
    by_torchrun: bool = False


def launch() -> Launch:
    """What the environment variables of torchrun say.

    Raises:
        RequestError: they contradict one another.
    """
    words = [os.environ.get(name, "") for name in VARIABLES]
    if not all(words) or "MASTER_ADDR" not in os.environ:
        return Launch()
    try:
        rank, size, local_rank, local_size = map(int, words)
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    except ValueError:
        rank = size = -1
    if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
        said = ", ".join(f"{name}={word}" for name, word in zip(VARIABLES, words, strict=True))
        raise RequestError(f"the environment says {said}, which cannot be; start the processes with torchrun")
    return Launch(rank, size, local_rank, local_size, restarts, by_torchrun=True)
