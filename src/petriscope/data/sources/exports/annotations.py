"""What labelling tools export, whatever the format: images, and what was drawn in each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from petriscope.core.errors import RequestError, shortened, shown
from petriscope.core.files import read_text
from petriscope.core.names import tidy
from petriscope.data.decode import MAX_PIXELS
from petriscope.data.omissions import LeftOut

# Kinds of faults, as `LeftOut` counts them.
NOT_PARSED = "annotation file{s} that cannot be parsed"
NOT_AS_FORMAT = "record{s} without what the format asks for"
NOT_FINITE = "annotation{s} with numbers that are missing or not finite"
NO_AREA = "annotation{s} without area"
OUTSIDE = "annotation{s} outside of the image"
FEW_POINTS = "outline{s} of fewer than three points"
UNDECLARED = "annotation{s} of a class that is not declared"
ORPHAN = "annotation{s} of an image that is not listed"
TWICE = "record{s} with an id that another has"
NO_IMAGE = "image{s} that annotations name and that cannot be found"
AMBIGUOUS = "image{s} of whose name there are several"
OTHER_SIZE = "image{s} of another size than the annotations say"
BRUSH = "annotation{s} drawn with a brush, whose encoding is not read; export them as polygons, or as COCO"

Box = tuple[float, float, float, float]  # left, top, right, bottom; pixel i spans from i to i + 1


class Fault(Exception):
    """A record that cannot be used.

    Args:
        kind: one of the kinds above.
        detail: what is wrong with it, in a few words.
    """

    def __init__(self, kind: str, detail: str = "") -> None:
        self.kind, self.detail = kind, detail
        super().__init__(kind, detail)


@dataclass(frozen=True, eq=False)
class Runs:
    """A mask in runs of pixels outside and inside by turns, the first outside.

    Args:
        counts: the length of each, int64 [R].
        shape: (height, width) of the mask.
        by_rows: the runs go along rows, not along columns.
        corner: (left, top) of the mask in the image.
    """

    counts: np.ndarray
    shape: tuple[int, int]
    by_rows: bool = False
    corner: tuple[int, int] = (0, 0)


@dataclass(frozen=True, eq=False)
class Drawn:
    """What was drawn around an object.

    Args:
        label: its class.
        number: its place among all that was drawn in its image, from 0, also among what cannot be used.
        where: the file and the record, for messages.
        box: None: only an outline was drawn.
        rings: float64 [P, 2] each, x and y: the parts of the outline.
        runs: the outline as a mask.
        flags: what the tool says of it, such as whether it is occluded.
        rank: those of higher rank lie over others.
    """

    label: str
    number: int
    where: str
    box: Box | None = None
    rings: tuple[np.ndarray, ...] = ()
    runs: Runs | None = None
    flags: Mapping[str, str] = field(default_factory=dict)
    rank: int = 0

    @property
    def outlined(self) -> bool:
        return bool(self.rings) or self.runs is not None


@dataclass(eq=False)
class Labeled:
    """An image as an export describes it.

    Args:
        names: what the export calls its file; where there are several names, the first of which there is a file.
        near: the folder that the names start from, as the id of `petriscope.data.walk.Folder`.
        where: the file and the record, for messages.
        size: (height, width) that the export says; None: it says none.
        split: train, val, test; None: the export says none.
        drawn: in the order of the export.
        shares: coordinates are shares of the sides of the image, 0 to 1, not pixels.
    """

    names: tuple[str, ...]
    near: str
    where: str
    size: tuple[int, int] | None = None
    split: str | None = None
    drawn: list[Drawn] = field(default_factory=list)
    shares: bool = False


@dataclass(eq=False)
class Export:
    """What a labelling tool has exported.

    Args:
        tool: the format, for messages.
        images: those that the export describes.
        classes: as the export declares them, in order; None: it declares none.
        faults: records that cannot be used.
        left_out: what is not read by intention.
        notes: how the export was understood, where that is not plain, one sentence each.
        used: the ids of the files that were read.
    """

    tool: str
    images: list[Labeled] = field(default_factory=list)
    classes: list[str] | None = None
    faults: LeftOut = field(default_factory=LeftOut)
    left_out: LeftOut = field(default_factory=LeftOut)
    notes: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)

    def fault(self, error: Fault, where: str) -> None:
        self.faults.add(error.kind, f"{where}{': ' if error.detail else ''}{error.detail}")

    def class_named(self, label: Any) -> str:
        """A class name, tidied.

        Raises:
            Fault: it is none, or classes are declared and it is not among them.
        """
        if not isinstance(label, str) or not (name := tidy(label)):
            raise Fault(NOT_AS_FORMAT, f"the class is {shown(label)}")
        if self.classes is not None and name not in self.classes:
            raise Fault(UNDECLARED, shortened(name))
        return name


def numbers(values: Any, count: int | None = None) -> list[float]:
    """Finite numbers from a list of numbers, or of texts that are numbers.

    Args:
        count: how many there must be; None: any number.

    Raises:
        Fault: there are others, or something else.
    """
    if not isinstance(values, Sequence) or isinstance(values, str) or (count is not None and len(values) != count):
        raise Fault(NOT_FINITE, shown(values))
    if {*map(type, values)} <= {float, int}:  # as in most files, of which some have millions
        with suppress(OverflowError):
            found = list(map(float, values))
            if all(map(math.isfinite, found)):
                return found
    out = []
    for value in values:
        try:
            number = float(value) if isinstance(value, (str, int, float)) and value is not True else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise Fault(NOT_FINITE, shown(value if isinstance(value, str) else values))
        out.append(number)
    return out


def ring(flat: Sequence[float]) -> np.ndarray:
    """Points from x and y by turns, float64 [P, 2].

    Raises:
        Fault: fewer than three points, or a number too many.
    """
    if len(flat) < 6:
        raise Fault(FEW_POINTS, f"{len(flat) // 2} point{'s' * (len(flat) // 2 != 1)}")
    if len(flat) % 2:
        raise Fault(NOT_AS_FORMAT, f"{len(flat)} coordinates, an odd number")
    return np.array(flat, dtype=np.float64).reshape(-1, 2)


def runs_of(
    lengths: Sequence[int], height: int, width: int, by_rows: bool = False, corner: tuple[int, int] = (0, 0)
) -> Runs:
    """A mask from the lengths of its runs.

    Raises:
        Fault: they do not fill it, or it is larger than an image may be.
    """
    if min(height, width) < 1 or height * width > MAX_PIXELS or sum(lengths) != height * width or min(lengths) < 0:
        raise Fault(NOT_AS_FORMAT, f"its runs do not fill a mask of {height:g} x {width:g} pixels")
    return Runs(np.array(lengths, dtype=np.int64), (height, width), by_rows, corner)


def text_of(path: Path, limit: int, what: str) -> str:
    """`read_text` of a regular file: a named pipe would be waited for without end.

    Raises:
        RequestError: it is none, or as `read_text`.
    """
    if not path.is_file():
        raise RequestError(f"{path} is no regular file, and cannot be read as {what}")
    return read_text(path, limit, what)


def whole(value: Any) -> int | None:
    """A whole number of pixels from a number or a text; None if it is none or not positive."""
    try:
        number = float(value) if isinstance(value, (str, int, float)) else 0.0
    except (ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() and 0 < number < 1e9 else None


def size_of(height: Any, width: Any) -> tuple[int, int] | None:
    """(height, width) as an export says it; None if it says none."""
    rows, columns = whole(height), whole(width)
    return None if rows is None or columns is None else (rows, columns)
