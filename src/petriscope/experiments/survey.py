"""What `petriscope.experiments.auto` looks at before it reads images: how large they are, and how splits can be drawn."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from petriscope.core.errors import DataError, listed
from petriscope.core.recipe import DataSection
from petriscope.data import Dataset
from petriscope.data.decode import decode_file, probe_file, workers
from petriscope.data.in_memory import AnyFile
from petriscope.data.sources import list_files
from petriscope.experiments.candidates import SQUARE

LOOKED_AT = 500  # files whose headers are read
READ = 16  # of these, files that are read to see how long it takes
SQUASHED = 1.25  # an image whose sides are in a proportion that differs more is squashed so that one sees it
FEW = 7  # images of a class, below which none are kept for a test split
VAL, TEST = "val_fraction", "test_fraction"


@dataclass(frozen=True)
class Survey:
    """The sizes of images in their files.

    Args:
        count: of all images of the source.
        sizes: height and width of those that were looked at, int [M, 2].
        names: of these.
        masks: whether files have masks.
        reading: seconds that reading all takes, about, by a few of them; 0 if they were read.
    """

    count: int
    sizes: np.ndarray
    names: tuple[str, ...]
    masks: bool = False
    reading: float = 0.0

    @property
    def mixed(self) -> bool:
        """Whether sizes differ."""
        return bool((self.sizes != self.sizes[0]).any())

    @property
    def typical(self) -> tuple[float, float]:
        """A height and width of a typical area and in typical proportions; a square if sizes differ and are nearly one."""
        height, width = self.sizes.T.astype(float)
        area, proportion = float(np.median(height * width)), float(np.median(height / width))
        if self.mixed and max(proportion, 1 / proportion) < SQUARE:
            proportion = 1.0
        return math.sqrt(area * proportion), math.sqrt(area / proportion)

    def squashed(self, size: tuple[int, int]) -> str:
        """How many images are squashed where all are brought to a size, and which is the first; empty if none is."""
        there = self.sizes[:, 0] / self.sizes[:, 1] * size[1] / size[0]
        rows = np.flatnonzero(np.maximum(there, 1 / there) > SQUASHED)
        if not len(rows):
            return ""
        height, width = self.sizes[rows[0]]
        share = 100 * len(rows) / len(self.sizes)
        return (
            f"{share:.0f} % of the images have other proportions and are squashed by more than a quarter, the first: "
            f"{self.names[rows[0]]} ({height}x{width})"
        )


def look_at_files(section: DataSection) -> Survey | None:
    """Read the headers of some of the files of a source; None if it has no files of images.

    Raises:
        RequestError, DataError: there is no such source.
    """
    if section.source is None:
        return None
    files = list_files(section.source, section)
    some = files[:: max(1, len(files) // LOOKED_AT)]
    with ThreadPoolExecutor(workers()) as pool:
        headers = list(pool.map(probe_file, (file.path for file in some)))
        few, began = some[:: max(1, len(some) // READ)], time.monotonic()
        list(pool.map(_read, (file.path for file in few)))
        reading = (time.monotonic() - began) * len(files) / max(len(few), 1)
    known = [(file.id, header) for file, (header, _) in zip(some, headers, strict=True) if header is not None]
    if not known:
        return None
    sizes, names = np.array([header[:2] for _, header in known]), tuple(name for name, _ in known)
    return Survey(len(files), sizes, names, any(file.mask is not None for file in some), reading)


def _read(path: AnyFile) -> None:
    with suppress(DataError):  # said when all are read
        decode_file(path)


def look_at_images(dataset: Dataset) -> Survey:
    """The same of images that were read in one size."""
    height, width, _ = dataset.shape
    first = next(iter(dataset.splits.values()))
    count = sum(map(len, dataset.splits.values()))
    return Survey(count, np.array([[height, width]]), (str(first.ids[0]),), dataset.task.dense)


def fractions(dataset: Dataset, given: Collection[str]) -> tuple[dict[str, float], list[str]]:
    """Shares of val and test that serve a small set, where splits were drawn: val has an image of each class.

    Args:
        given: keys of the section ``data`` that are set by the user.

    Returns:
        keys of the section ``data``, none if the splits are good as they are; and what to say of them.
    """
    val, train = dataset.val, dataset.train
    if train is None or "val" not in dataset.drawn or dataset.task.dense or {VAL, TEST} & set(given):
        return {}, _lacking(dataset)
    counts = sum(part.counts for part in dataset.splits.values())
    fewest = int(np.min(counts))
    if train.groups is not None or (val is not None and val.counts.min() > 0 and fewest >= FEW) or fewest < 2:
        return {}, _lacking(dataset)
    found = {VAL: min(max(0.15, math.ceil(1000 / fewest) / 1000), 0.5)}
    notes = []
    if "test" in dataset.drawn and fewest < FEW:
        found[TEST] = 0.0
        notes.append(f"no test split, since the smallest class has {fewest} images: all are for train and val")
    return found, notes


def _lacking(dataset: Dataset) -> list[str]:
    """What val lacks, a sentence each."""
    if dataset.val is None:
        return ["there is no val split: nothing shows how good the network is, and nothing is calibrated"]
    lacking = [dataset.classes[label] for label in np.flatnonzero(dataset.val.counts == 0)]
    if not lacking:
        return []
    count, are = (f"{len(lacking)} classes", "they are") if len(lacking) > 1 else ("1 class", "it is")
    return [f"val has none of {count}, so nothing shows how well {are} recognized: {listed(lacking)}"]
