"""Tables of predictions, which are computed while they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from petriscope.core.csv_tables import csv_lines
from petriscope.core.errors import PetriscopeError, RequestError
from petriscope.core.files import atomic, is_device, readable
from petriscope.core.progress import progress, say
from petriscope.data.in_memory import AnyFile
from petriscope.data.membership import UNKNOWN, Exposure
from petriscope.inference.base import Predicts
from petriscope.inference.decoding import Attempt, decoded, digests_of

if TYPE_CHECKING:
    from petriscope.core.recipe import TTA

TABLES = ("", ".csv", ".txt")  # how the name of a table may end


@dataclass(frozen=True)
class Rows:
    """A table of predictions that is computed while it is read, so that memory does not grow with the number of images.

    Args:
        columns: names of the columns, in order.
        parts: the rows of some of the images at a time, in the order of the images. Each has a value for each column.
        out: the CSV file that the rows are written to as they are read; None: none. It appears when all are there.
    """

    columns: Sequence[str]
    parts: Iterator[list[dict[str, Any]]]
    out: Path | None

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        with ExitStack() as open_files:
            write = None
            if self.out is not None:
                temporary = open_files.enter_context(atomic(self.out))
                write = open_files.enter_context(temporary.open("w", encoding="utf-8", newline="")).write
                write(self.csv([], header=True))
            for rows in self.parts:
                if write is not None:
                    write(self.csv(rows))
                yield rows

    def csv(self, rows: Sequence[Mapping[str, Any]], header: bool = False) -> str:
        """Rows as lines of CSV."""
        return csv_lines(self.columns, rows, header)


def check_table(out: Path | None, paths: Sequence[AnyFile]) -> None:
    """Whether a table may be written to a path.

    Raises:
        RequestError: it is a folder, one of the images that are predicted, or named like another kind of file, which it would
            replace.
    """
    if out is None or is_device(out):
        return
    if out.is_dir():
        raise RequestError(f"{out} is a folder; name the CSV file to write, such as {out / 'classes.csv'}")
    if out.suffix.lower() not in TABLES:
        raise RequestError(f"the table is written as CSV; name it so, such as {out.stem}.csv, and not {out}")
    if out.exists() and any(
        isinstance(path, Path) and path.name == out.name and path.exists() and path.samefile(out) for path in paths
    ):
        raise RequestError(f"{out} is one of the images; the table would replace it, so name another file")


@dataclass(frozen=True)
class Wanted:
    """How image files are to be predicted; see `petriscope.inference.predict.predict_files`."""

    out: Path | None
    tta: TTA
    max_error: float | None
    set_coverage: float | None
    quiet: bool
    without_guarantee: bool = False
    withdrawn: Callable[[Any], object] | None = None


def hand_over(rows: Rows, out: Path | None, write: Callable[[str], object]) -> None:
    """Read a table to its end.

    Args:
        out: where its rows, or masks, go; None: to ``write``, as CSV.

    Raises:
        PetriscopeError: images could not be read; their rows say why.
    """
    if out is None:
        write(rows.csv([], header=True))
    count, failed, first = 0, 0, ""
    for part in rows:
        if out is None:
            write(rows.csv(part))
        errors = [row["error"] for row in part if row["error"] is not None]
        first = first or next(iter(errors), "")
        count, failed = count + len(part), failed + len(errors)
    if out is not None:
        say(f"{count:,} image{'s' * (count != 1)} in {out}")
    if failed:
        raise PetriscopeError(f"{failed:,} of {count:,} images could not be read, the first: {first}")


def rows_by_chunk(
    model: Predicts,
    paths: Sequence[AnyFile],
    columns: Sequence[str],
    rows_of: Callable[[list[np.ndarray], list[AnyFile]], Sequence[Mapping[str, Any]]],
    chunk: int,
    quiet: bool,
    kept: dict[AnyFile, Attempt] | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """One row per file: ``image``, ``error`` if it cannot be read, and the fields that ``rows_of`` gives.

    Args:
        columns: names of the columns, in order.
        rows_of: images, uint8 [H, W, C] each, and their paths -> the fields of each row.
        chunk: number of images in memory at a time.
        kept: see `decoded`.
    """
    seen = Seen(model.exposure)
    with progress("predicting", len(paths)) as bar:
        for block, images in decoded(model, paths, chunk, kept=kept):
            read = [(path, image) for path, image in zip(block, images, strict=True) if not isinstance(image, str)]
            seen.note([path for path, _ in read], digests_of([image for _, image in read]))
            good = [image.pixels for _, image in read]
            found = iter(rows_of(good, [path for path, _ in read]) if good else ())
            rows = []
            for path, image in zip(block, images, strict=True):
                row: dict[str, Any] = {**dict.fromkeys(columns), "image": str(path)}
                if isinstance(image, str):
                    row["error"] = image
                else:
                    row |= next(found)
                rows.append(readable_row(row))
            yield rows
            if not quiet:
                bar.advance(len(block))
    seen.tell()


class Seen:
    """Counts the images that a model has seen in its training.

    Args:
        counts: by `Exposure.roles`.
        first: that it has seen.
    """

    def __init__(self, exposure: Exposure | None) -> None:
        self.exposure = exposure
        self.counts = {"": 0, "train": 0, "val": 0}
        self.first: AnyFile | str | None = None

    def note(self, paths: Sequence[AnyFile], digests: Sequence[bytes]) -> np.ndarray:
        """Count images by their digests. Returns which of them it has not learned from, bool [N]; all, if that is unknown."""
        if self.exposure is None or not digests:
            return np.ones(len(digests), bool)
        roles = self.exposure.roles(digests)
        for path, role in zip(paths, roles, strict=True):
            self.counts[role] += 1
            if role and self.first is None:
                self.first = path
        return roles != "train"

    def tell(self) -> None:
        if self.exposure is None:
            say(f"note: {UNKNOWN} whether the model learned from these images")
        elif self.first is not None:
            what = self.exposure.sentence(self.counts["train"], self.counts["val"], str(self.first))
            count = sum(self.counts.values())
            say(
                f"warning: of {count:,} image{'s' * (count > 1)}, {what}; how right and how certain it is on them says nothing "
                "about new images"
            )


def readable_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a table, in which names of files that are not UTF-8 are spelled so that they are."""
    return {key: readable(value) if isinstance(value, str) else value for key, value in row.items()}
