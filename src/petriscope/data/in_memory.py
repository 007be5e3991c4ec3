"""Image files in memory."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path


@dataclass(frozen=True, eq=False)
class InMemory:
    """The content of an image file, which can stand where the path of one can.

    Args:
        name: in messages and tables.
        content: in one of the formats of `petriscope.data.decode.FORMATS`.
    """

    name: str
    content: bytes

    def __str__(self) -> str:
        return self.name

    @property
    def stem(self) -> str:
        return self.name

    def open(self, mode: str = "rb") -> BytesIO:
        return BytesIO(self.content)


AnyFile = Path | InMemory
