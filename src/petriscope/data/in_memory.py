"""Image files in memory, and within other files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO


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


@dataclass(frozen=True, eq=False)
class Within:
    """An image file within another file, such as an archive or a table, which can stand where the path of one can. It is read
    anew each time that it is opened.

    Args:
        name: in messages and tables.
        size: in bytes.
        load: gives its content; it may raise anything if the file around it is damaged.
    """

    name: str
    size: int
    load: Callable[[], bytes]

    def __str__(self) -> str:
        return self.name

    @property
    def stem(self) -> str:
        return self.name

    def open(self, mode: str = "rb") -> BytesIO:
        return BytesIO(self.load())


@dataclass(frozen=True)
class Page:
    """A page, frame or position of an image file that is an image of its own, which can stand where the path of one can.

    Args:
        file: that it is in.
        number: from 0.
    """

    file: Path | InMemory | Within
    number: int

    def __str__(self) -> str:
        return f"{self.file}#{self.number}"

    @property
    def stem(self) -> str:
        return f"{self.file.stem}-{self.number}"

    @property
    def name(self) -> str:
        """Of the file."""
        return self.file.name

    def open(self, mode: str = "rb") -> BinaryIO:
        """The file."""
        return self.file.open("rb")


AnyFile = Path | InMemory | Within | Page
