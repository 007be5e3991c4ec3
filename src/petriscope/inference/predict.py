"""Prediction of image files: find and decode them, and predict them as the model's task requires."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from petriscope.core.csv_tables import csv_text
from petriscope.core.errors import DataError, RequestError
from petriscope.core.files import atomic, readable
from petriscope.core.progress import progress, say
from petriscope.core.recipe import TTA
from petriscope.data.contents import Content, Contents
from petriscope.data.decode import decode_with_content, workers
from petriscope.data.in_memory import AnyFile, InMemory
from petriscope.data.index import row_digests
from petriscope.data.membership import UNKNOWN, Exposure
from petriscope.data.rescale import rescale, scale_factors
from petriscope.data.walk import LeftOut, count_others, walk
from petriscope.inference.predictor import Predictor
from petriscope.tasks import in_room

CHUNK = 256  # images decoded, and in memory, at a time
KEPT_BYTES = 2**28  # of images that are decoded once for two uses


@dataclass(frozen=True, eq=False)
class DecodedFile:
    """An image file in the shape of a model.

    Args:
        pixels: at the scale of its recipe, uint8 [H, W, C].
        plain: as it was before it was scaled, by which images are recognized.
        size: height and width in the file.
    """

    pixels: np.ndarray
    plain: np.ndarray
    size: tuple[int, int]


Attempt = tuple[DecodedFile | str, Content | None]  # an image, or what is wrong with its file; and what the file holds


def find_images(paths: Sequence[AnyFile]) -> list[AnyFile]:
    """The given files, and all images in the given folders and their subfolders.

    Raises:
        RequestError: a path does not exist, or a folder has no images.
    """
    found: list[AnyFile] = []
    for path in paths:
        if isinstance(path, InMemory):
            found.append(path)
        elif path.is_dir():
            left_out = LeftOut()
            tree = walk(path, left_out)
            count_others(tree, left_out)
            notes = left_out.sentences(path)
            if not tree.count:
                raise RequestError(". ".join([f"no images in {path}", *notes]))
            found += sorted(folder.path / name for folder in tree.all() for name in folder.images)
            for note in notes:
                say(note)
        elif path.exists():
            found.append(path)
        else:
            raise RequestError(f"no such image or folder: {path}")
    return found


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
        import pandas as pd

        return csv_text(pd.DataFrame(rows, columns=list(self.columns)), header)


@dataclass(frozen=True)
class Wanted:
    """How image files are to be predicted; see `predict_files`."""

    out: Path | None
    tta: TTA
    max_error: float | None
    set_coverage: float | None
    quiet: bool
    without_guarantee: bool = False
    withdrawn: Callable[[Any], object] | None = None


def predict_files(
    predictor: Predictor,
    paths: Sequence[AnyFile],
    out: Path | None = None,
    tta: TTA | None = None,
    max_error: float | None = None,
    set_coverage: float | None = None,
    quiet: bool = True,
    without_guarantee: bool = False,
    withdrawn: Callable[[Any], object] | None = None,
) -> Rows:
    """Predict image files, while the rows are read.

    Args:
        out: a CSV file; for segmentation, a folder; None: nothing is written.
        tta: test-time augmentation; None: as in the recipe.
        max_error, set_coverage: see `petriscope.trust.plan.plan_abstention`. If one is given, the images are first
            compared with those of val. Where they are shown not to be like them, nothing is answered.
        without_guarantee: answer them all the same, without any claim.
        withdrawn: called with the comparison, a `petriscope.inference.likeness.Compared`, where guarantees are withdrawn.

    Returns:
        one row per image, see ``predict_files`` in `petriscope.inference.classification` and
        `petriscope.inference.segmentation`.

    Raises:
        RequestError: the task does not support an argument.
    """
    wanted = Wanted(
        out, tta or predictor.recipe.evaluation.tta, max_error, set_coverage, quiet, without_guarantee, withdrawn
    )
    return in_room(predictor.task, "inference").predict_files(predictor, paths, wanted)


def rows_by_chunk(
    predictor: Predictor,
    paths: Sequence[AnyFile],
    columns: Sequence[str],
    rows_of: Callable[[np.ndarray, list[AnyFile]], Sequence[Mapping[str, Any]]],
    chunk: int,
    quiet: bool,
    kept: dict[AnyFile, Attempt] | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """One row per file: ``image``, ``error`` if it cannot be read, and the fields that ``rows_of`` gives.

    Args:
        columns: names of the columns, in order.
        rows_of: images, uint8 [B, H, W, C], and their paths -> the fields of each row.
        chunk: number of images in memory at a time.
        kept: see `decoded`.
    """
    seen = _Seen(predictor.exposure)
    with progress("predicting", len(paths)) as bar:
        for block, images in decoded(predictor, paths, chunk, kept=kept):
            read = [(path, image) for path, image in zip(block, images, strict=True) if not isinstance(image, str)]
            seen.note([path for path, _ in read], [image for _, image in read])
            good = [image.pixels for _, image in read]
            found = iter(rows_of(np.stack(good), [path for path, _ in read]) if good else ())
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


class _Seen:
    """Counts the images that a model has seen in its training."""

    def __init__(self, exposure: Exposure | None) -> None:
        self.exposure = exposure
        self.counts = {"": 0, "train": 0, "val": 0}
        self.first: AnyFile | None = None

    def note(self, paths: Sequence[AnyFile], images: Sequence[DecodedFile]) -> None:
        if self.exposure is None or not images:
            return
        for path, role in zip(paths, self.exposure.roles(digests_of(images)), strict=True):
            self.counts[role] += 1
            if role and self.first is None:
                self.first = path

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


def digests_of(images: Sequence[DecodedFile]) -> list[bytes]:
    """The digests that images are recognized by, as `petriscope.data.imageset.ImageSet.digests`."""
    return [bytes(each) for each in row_digests(np.stack([image.plain for image in images]))] if images else []


def readable_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a table, in which names of files that are not UTF-8 are spelled so that they are."""
    return {key: readable(value) if isinstance(value, str) else value for key, value in row.items()}


def decoded(
    predictor: Predictor,
    paths: Sequence[AnyFile],
    chunk: int = CHUNK,
    tell: bool = True,
    kept: dict[AnyFile, Attempt] | None = None,
    keep: bool = False,
) -> Iterator[tuple[Sequence[AnyFile], list[DecodedFile | str]]]:
    """Chunks of paths, each with its decoded images. An image that cannot be read is replaced by the error message.

    Args:
        tell: at the end, say what the files hold beside these images.
        kept: files that were decoded before, which are taken from it; with ``keep``, files are added, up to `KEPT_BYTES`.
    """
    height, width, channels = predictor.shape
    data = predictor.recipe.data
    held = Contents(data.bits, data.channels == "gray")
    known: dict[AnyFile, Attempt] = {} if kept is None else kept
    most = KEPT_BYTES // (height * width * channels * (1 if data.scale is None else 2)) if keep else 0

    def attempt(path: AnyFile) -> Attempt:
        if not keep and (found := known.pop(path, None)) is not None:
            return found
        try:
            plain, content = decode_with_content(
                path, (height, width), data.filter, "gray" if channels == 1 else "rgb", data.bits
            )
            pixels = plain
            if data.scale is not None:
                try:
                    factors = scale_factors(np.array([content.size]), data.scale, data.field_of_view)
                except DataError as error:
                    raise DataError(f"{path}: {error}") from None
                pixels = rescale(plain[None], factors)[0]
            return DecodedFile(pixels, plain, content.size), content
        except DataError as error:
            return str(error), None

    with ThreadPoolExecutor(workers()) as pool:
        for start in range(0, len(paths), chunk):
            block = paths[start : start + chunk]
            images = []
            for path, (image, content) in zip(block, pool.map(attempt, block), strict=True):
                images.append(image)
                if len(known) < most:
                    known[path] = image, content
                if content is not None:
                    held.add(str(path), content)
            yield block, images
    for warning in held.warnings() if tell else ():
        say(f"warning: {warning}")
