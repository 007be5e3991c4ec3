"""What the scripts of the rivals import beside their library. It runs in the environment of each, without Petriscope."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

BY_PROCESSOR = SimpleNamespace(**{**vars(time), "time": time.process_time, "monotonic": time.process_time})
"""Stands for the module ``time`` in a library that limits its training by the clock on the wall: on a busy machine, that
clock gives the processor time of other programs away."""


def files(folder: Path) -> Sequence[Path]:
    """The images of a folder, by name."""
    return sorted(folder.glob("*.png"))


class Timer:
    """The share of so many seconds of the processor that was used since it was made, 0 to 1."""

    def __init__(self, seconds: float) -> None:
        self.start, self.seconds = time.process_time(), seconds

    @property
    def share(self) -> float:
        return min(1.0, (time.process_time() - self.start) / self.seconds)
