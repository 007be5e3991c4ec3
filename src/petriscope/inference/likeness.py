"""Compares images with those of val before guarantees made on val are used on them; see `petriscope.trust.two_sample`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from petriscope.core.progress import progress
from petriscope.core.shift import ShiftTest
from petriscope.data.imageset import ImageSet
from petriscope.data.in_memory import AnyFile
from petriscope.inference.fit import sample_rows
from petriscope.inference.predict import Attempt, decoded, digests_of
from petriscope.inference.predictor import Predictor
from petriscope.trust.two_sample import FALSE_ALARMS, MOST, Traits, compare, joined

CHUNK = 128  # images in memory at a time
SHOWN = 6  # images that a report shows
OLDER = "the model file is of an older version and does not say what images of val are like; petriscope calibrate RUN adds that"


@dataclass(frozen=True, eq=False)
class Compared:
    """A comparison with val.

    Args:
        test: its result.
        shown: some of the images, uint8 [P, H, W, C], P at most `SHOWN`.
        classes: the classes that these are predicted as, int64 [P].
    """

    test: ShiftTest
    shown: np.ndarray
    classes: np.ndarray


def compare_files(
    predictor: Predictor, paths: Sequence[AnyFile], quiet: bool, kept: dict[AnyFile, Attempt] | None = None
) -> Compared:
    """Compare image files with val: at most `MOST`, drawn at random. Files that cannot be read are left out, and so are images
    that the model has learned from, since it is more certain about them than about new ones.

    Args:
        kept: what is decoded is added to it, see `petriscope.inference.predict.decoded`.
    """
    likeness = predictor.trust.likeness
    if likeness is None:
        return _nothing(predictor, len(paths), OLDER)
    chosen = [paths[row] for row in sample_rows(len(paths), MOST)]
    parts: list[Traits] = []
    some: dict[int, np.ndarray] = {}
    count, step = 0, max(1, len(chosen) // SHOWN)
    with progress("comparing with val", len(chosen)) as bar:
        for block, images in decoded(predictor, chosen, CHUNK, tell=False, kept=kept, keep=kept is not None):
            good = [image for image in images if not isinstance(image, str)]
            batch = np.stack([image.pixels for image in good]) if good else np.empty((0, *predictor.shape), np.uint8)
            batch = batch[_unlearned(predictor, digests_of(good), len(good))]
            if len(batch):
                parts.append(predictor.traits(batch, likeness))
                some |= {count + i: image for i, image in enumerate(batch) if (count + i) % step == 0}
                count += len(batch)
            if not quiet:
                bar.advance(len(block))
    if not parts:
        return _nothing(predictor, len(paths), "none of them could be read, or the model has learned from all of them")
    traits, rows = joined(parts), list(some)[:SHOWN]
    test = compare(likeness, traits, predictor.classes, len(paths) if len(paths) > MOST else count)
    return Compared(test, np.stack([some[row] for row in rows]), traits.predicted[rows])


def compare_images(predictor: Predictor, images: ImageSet, quiet: bool) -> Compared:
    """Compare images of a source with val, as `compare_files` does."""
    likeness = predictor.trust.likeness
    if likeness is None:
        return _nothing(predictor, len(images), OLDER)
    new = _unlearned(predictor, images.digests(), len(images))
    if not new.any():
        return _nothing(predictor, len(images), "the model has learned from all of them")
    images = images.subset(np.flatnonzero(new))
    rows = sample_rows(len(images), MOST)
    parts = []
    with progress("comparing with val", len(rows)) as bar:
        for start in range(0, len(rows), CHUNK):
            batch = images.take(rows[start : start + CHUNK])
            parts.append(predictor.traits(batch, likeness))
            if not quiet:
                bar.advance(len(batch))
    traits = joined(parts)
    groups = None if images.groups is None else images.groups[rows]
    shown = np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).round().astype(np.int64)
    test = compare(likeness, traits, predictor.classes, len(images), groups)
    return Compared(test, images.take(rows[shown]), traits.predicted[shown])


def _unlearned(predictor: Predictor, digests: Iterable[bytes], count: int) -> np.ndarray:
    """Which of so many images the model has not learned from, bool [N]; all, if that is unknown."""
    if predictor.exposure is None:
        return np.ones(count, bool)
    return predictor.exposure.roles(digests) != "train"


def _nothing(predictor: Predictor, count: int, why: str) -> Compared:
    val = 0 if predictor.trust.likeness is None else len(predictor.trust.likeness.target)
    test = ShiftTest(n=0, of=count, val=val, level=FALSE_ALARMS, not_tested=why)
    return Compared(test, np.empty((0, *predictor.shape), np.uint8), np.empty(0, np.int64))
