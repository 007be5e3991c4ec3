"""What images of a source look like, beside those of a run or of another source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike

import numpy as np

from petriscope.core.channels import in_words
from petriscope.core.errors import RequestError
from petriscope.core.files import path_text
from petriscope.core.progress import say
from petriscope.core.recipe import DataSection
from petriscope.core.results import ScaleEstimate, Scaling
from petriscope.core.scale import ESTIMATED, Scale, asked_scale
from petriscope.data import ImageSet, load_dataset
from petriscope.data.recognition import join_sets
from petriscope.experiments.own_data import find_data
from petriscope.experiments.unlabeled import read_images
from petriscope.inference.fit import appearances
from petriscope.inference.predictor import Predictor, load_model
from petriscope.inference.sampling import sample_rows
from petriscope.inference.scaling import ChosenScale, scale_set
from petriscope.run.folder import is_run, open_run
from petriscope.trust.object_size import SIZE, estimate_scale
from petriscope.trust.two_sample import deviations

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
    """A measure of both sides, see `petriscope.data.appearance.Appearance`.

    Args:
        deviations: how far the median of the first lies from that of the second, in standard deviations of the second, see
            `petriscope.trust.two_sample.deviations`; None where a side has no median.
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
        scaling: how the first was scaled before it was measured; None: not at all.
        estimate: how many times the objects of the first are to be enlarged to be as large as those of the second, from images as
            they are; None: that cannot be told, for the reason in ``not_estimated``.
    """

    names: tuple[str, str]
    sizes: tuple[int, int]
    rows: Sequence[Beside]
    scaling: Scaling | None = None
    estimate: ScaleEstimate | None = None
    not_estimated: str = ""


def side_by_side(
    source: str | PathLike[str],
    like: str | PathLike[str],
    section: DataSection | None = None,
    quiet: bool = False,
    scale: Scale | None = None,
) -> SideBySide:
    """Measure images of a source, and those of a run or of another source.

    Args:
        source: its labels are not used. It is read as the run reads images.
        like: a run, of which val stands for all (its measures are in the model file, so the data may be gone), or what it was
            adapted to; or a source.
        section: how sources are read where ``like`` is one; None: by default.
        scale: of the images of ``source``, see `petriscope.evaluate`; None: as the run reads images.

    Raises:
        RequestError: there is no such source or run, or the images of two sources differ in size or channels.
        DataError: the images cannot be read.
    """
    source, like, asked = path_text(source), path_text(like), asked_scale(scale)
    if is_run(like):
        if section is not None and section != DataSection(source=section.source):
            raise RequestError(f"images are read as {like} reads them; other settings cannot be combined with it")
        predictor = load_model(like)
        images, (second, other) = _as_read_by(predictor, source, quiet), _of_run(like)
        section, chosen = predictor.recipe.data, ChosenScale(predictor.recipe.data.scale, asked=False)
    else:
        section, other, chosen = section or DataSection(), like, ChosenScale(None)
        images, theirs = (_of_source(section.model_copy(update={"source": each})) for each in (source, like))
        if (images.shape, images.channels) != (theirs.shape, theirs.channels):
            raise RequestError(_shapes_differ(source, like, images, theirs))
        second = appearances(theirs)
    estimate, why = _estimate(second, appearances(images), other)
    if asked == ESTIMATED:
        if estimate is None:
            raise RequestError(why)
        chosen = ChosenScale(estimate.factor, estimate)
    elif asked is not None:
        chosen = ChosenScale(asked)
    images, scaling = scale_set(section, images, chosen, quiet)
    first = appearances(images)
    names = [*CHANNELS[first.shape[1] - len(OTHERS)], *OTHERS]
    rows = [_beside(name, first[:, at], second[:, at]) for at, name in enumerate(names)]
    return SideBySide((source, other), (len(first), len(second)), rows, scaling, estimate, why)


def _estimate(known: np.ndarray, here: np.ndarray, what: str) -> tuple[ScaleEstimate | None, str]:
    """The estimated scale from the measures of both sides, or why there is none."""
    try:
        return estimate_scale(known[:, SIZE], here[:, SIZE], what=what), ""
    except RequestError as error:
        return None, str(error)


def _as_read_by(predictor: Predictor, source: str, quiet: bool) -> ImageSet:
    """Some images of a source, not scaled."""
    notes: list[str] = []
    images, of = read_images(predictor, source, MOST, notes, quiet)
    for note in notes:
        say(f"note: of {of:,} images of {source}, {note}")
    if not len(images):
        raise RequestError(f"{source} has no image that can be read")
    return images


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


def _shapes_differ(source: str, like: str, first: ImageSet, second: ImageSet) -> str:
    one, other = first.shape, second.shape
    if first.channels != second.channels:
        return (
            f"the images of {source} and {like} differ in channels, {in_words(first.channels)} and {in_words(second.channels)}; "
            "choose with --set data.channels=rgb, or give their names"
        )
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
