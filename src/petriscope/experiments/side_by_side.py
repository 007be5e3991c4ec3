"""What images of a source look like, beside those of a run or of another source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike

import numpy as np

from petriscope.core.errors import RequestError
from petriscope.core.files import path_text
from petriscope.core.progress import say
from petriscope.core.recipe import DataSection
from petriscope.data import ImageSet, load_dataset
from petriscope.data.recognition import join_sets
from petriscope.experiments.own_data import find_data
from petriscope.experiments.unlabeled import read_images
from petriscope.inference.fit import appearances, sample_rows
from petriscope.inference.predictor import load_model
from petriscope.run.folder import is_run, open_run
from petriscope.trust.shift import deviations

MOST = 2000  # images that are measured, of each side
CHANNELS = {1: ("brightness of the background",), 3: tuple(f"background, {c}" for c in ("red", "green", "blue"))}
OTHERS = ("stain", "size of the objects", "sharpness")


@dataclass(frozen=True)
class Spread:
    """A measure of the images of one side: the median, and the quartiles around it; None where no image has it."""

    median: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Beside:
    """A measure of both sides, see `petriscope.augment.appearance.Appearance`.

    Args:
        deviations: how far the median of the first lies from that of the second, in standard deviations of the second, see
            `petriscope.trust.shift.deviations`; None where a side has no median.
    """

    measure: str
    first: Spread
    second: Spread
    deviations: float | None


@dataclass(frozen=True)
class SideBySide:
    """Two sets of images.

    Args:
        names: what they are, in words.
        sizes: how many images were measured of each.
    """

    names: tuple[str, str]
    sizes: tuple[int, int]
    rows: Sequence[Beside]


def side_by_side(
    source: str | PathLike[str], like: str | PathLike[str], section: DataSection | None = None, quiet: bool = False
) -> SideBySide:
    """Measure images of a source, and those of a run or of another source.

    Args:
        source: its labels are not used. It is read as the run reads images.
        like: a run, of which val stands for all (its measures are in the model file, so the data may be gone), or what it was
            adapted to; or a source.
        section: how sources are read where ``like`` is one; None: by default.

    Raises:
        RequestError: there is no such source or run, or the images of two sources differ in size or channels.
        DataError: the images cannot be read.
    """
    source, like = path_text(source), path_text(like)
    if is_run(like):
        if section is not None and section != DataSection(source=section.source):
            raise RequestError(f"images are read as {like} reads them; other settings cannot be combined with it")
        first, (second, other) = _as_read_by(like, source, quiet), _of_run(like)
    else:
        section = section or DataSection()
        sets = [_of_source(section.model_copy(update={"source": each})) for each in (source, like)]
        if len({images.shape for images in sets}) > 1:
            raise RequestError(_shapes_differ(source, like, *(images.shape for images in sets)))
        (first, second), other = map(appearances, sets), like
    names = [*CHANNELS[first.shape[1] - len(OTHERS)], *OTHERS]
    rows = [_beside(name, first[:, at], second[:, at]) for at, name in enumerate(names)]
    return SideBySide((source, other), (len(first), len(second)), rows)


def _as_read_by(run: str, source: str, quiet: bool) -> np.ndarray:
    """The measures of a source, float32 [N, C + 3]."""
    predictor, notes = load_model(run), list[str]()
    pixels, ids, of = read_images(predictor, source, MOST, notes, quiet)
    for note in notes:
        say(f"note: of {of:,} images of {source}, {note}")
    if not len(pixels):
        raise RequestError(f"{source} has no image that can be read")
    return appearances(ImageSet(pixels, np.zeros(len(pixels), np.int64), ("any",), ids))


def _of_run(folder: str) -> tuple[np.ndarray, str]:
    """The measures of images of a run, and what they are in words."""
    likeness = load_model(folder).trust.likeness
    if likeness is not None:
        fitted = "held-out images" if open_run(folder).results.adaptation is not None else "val"
        return likeness.traits.appearance, f"{folder} ({fitted})"
    data = find_data(open_run(folder)).dataset
    name, images = next((name, data.splits[name]) for name in ("val", "train", "test") if name in data.splits)
    return appearances(images.subset(sample_rows(len(images), MOST))), f"{folder} ({name})"


def _of_source(section: DataSection) -> ImageSet:
    images = join_sets(list(load_dataset(section).splits.values()))
    return images.subset(sample_rows(len(images), MOST))


def _shapes_differ(source: str, like: str, one: tuple[int, int, int], other: tuple[int, int, int]) -> str:
    if one[2] != other[2]:
        return f"the images of {source} and {like} differ in channels; choose with --set data.channels=rgb"
    return (
        f"the images of {source} are {one[0]}x{one[1]} and those of {like} {other[0]}x{other[1]}, and sharpness depends on that; "
        "give both one size with --set data.size=N"
    )


def _beside(name: str, first: np.ndarray, second: np.ndarray) -> Beside:
    one, other = _spread(first), _spread(second)
    apart = None
    if one.median is not None and other.median is not None and other.low is not None and other.high is not None:
        apart = deviations(one.median, other.low, other.median, other.high)
    return Beside(name, one, other, apart)


def _spread(values: np.ndarray) -> Spread:
    there = values[np.isfinite(values)].astype(np.float64)
    if not len(there):
        return Spread(None, None, None)
    low, median, high = np.quantile(there, (0.25, 0.5, 0.75))
    return Spread(float(median), float(low), float(high))
