"""Compares images with those of val before guarantees made on val are used on them; see `petriscope.trust.two_sample`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from petriscope.core.progress import progress
from petriscope.core.shift_results import ShiftTest
from petriscope.data.in_memory import AnyFile
from petriscope.inference.base import Classifies
from petriscope.inference.decoding import Attempt, decoded, digests_of
from petriscope.inference.sampling import sample_rows
from petriscope.trust.two_sample import FALSE_ALARMS, MOST, Likeness, Traits, compare, joined

if TYPE_CHECKING:
    from petriscope.data.imageset import ImageSet

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
    model: Classifies, paths: Sequence[AnyFile], quiet: bool, kept: dict[AnyFile, Attempt] | None = None
) -> Compared:
    """Compare image files with val: at most `MOST`, drawn at random. Files that cannot be read are left out, and so are images
    that the model has learned from, since it is more certain about them than about new ones, and copies of an image, since
    they say nothing new.

    Args:
        kept: what is decoded is added to it, see `petriscope.inference.decoding.decoded`.
    """
    likeness = model.likeness
    if likeness is None:
        return nothing(None, len(paths))
    chosen = [paths[row] for row in sample_rows(len(paths), MOST)]
    parts: list[Traits] = []
    some: dict[int, np.ndarray] = {}
    count, step = 0, max(1, len(chosen) // SHOWN)
    novel = Novel(model)
    with progress("comparing with val", len(chosen)) as bar:
        for block, images in decoded(model, chosen, CHUNK, tell=False, kept=kept, keep=kept is not None):
            good = [image for image in images if not isinstance(image, str)]
            batch = np.stack([image.pixels for image in good]) if good else np.empty((0, *model.shape), np.uint8)
            batch = batch[novel.among(digests_of(good))]
            if len(batch):
                parts.append(model.traits(batch, likeness))
                some |= {count + i: image for i, image in enumerate(batch) if (count + i) % step == 0}
                count += len(batch)
            if not quiet:
                bar.advance(len(block))
    if not parts:
        return nothing(likeness, len(paths))
    traits, rows = joined(parts), list(some)[:SHOWN]
    test = compare(likeness, traits, model.classes, len(paths) if len(paths) > MOST else count)
    test = replace(test, copies=novel.copies)
    return Compared(test, np.stack([some[row] for row in rows]), traits.predicted[rows])


def compare_images(model: Classifies, images: ImageSet, quiet: bool) -> Compared:
    """Compare images of a source with val, as `compare_files` does."""
    likeness = model.likeness
    if likeness is None:
        return nothing(None, len(images))
    novel = Novel(model)
    new = novel.among(images.digests())
    if not new.any():
        return nothing(likeness, len(images), unread="")
    images = images.subset(np.flatnonzero(new))
    rows = sample_rows(len(images), MOST)
    parts = []
    with progress("comparing with val", len(rows)) as bar:
        for start in range(0, len(rows), CHUNK):
            batch = images.take(rows[start : start + CHUNK])
            parts.append(model.traits(batch, likeness))
            if not quiet:
                bar.advance(len(batch))
    traits = joined(parts)
    groups = None if images.groups is None else images.groups[rows]
    shown = np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).round().astype(np.int64)
    test = replace(compare(likeness, traits, model.classes, len(images), groups), copies=novel.copies)
    return Compared(test, images.take(rows[shown]), traits.predicted[shown])


class Novel:
    """Finds the images that are evidence: those that the model has not learned from, each once.

    Args:
        copies: how many were copies of others.
    """

    def __init__(self, model: Classifies) -> None:
        self.exposure, self.seen, self.copies = model.exposure, set[bytes](), 0

    def among(self, digests: Iterable[bytes]) -> np.ndarray:
        """Which of the next images are, bool [N]. Of those that the model cannot recognize, all are new to it."""
        digests = list(digests)
        out = np.ones(len(digests), bool) if self.exposure is None else self.exposure.roles(digests) != "train"
        for row in np.flatnonzero(out):
            out[row] = digests[row] not in self.seen
            self.copies += not out[row]
            self.seen.add(digests[row])
        return out


def nothing(likeness: Likeness | None, count: int, unread: str = "none of them could be read, or ") -> Compared:
    """What stands for a comparison of ``count`` images where there is nothing to compare."""
    why = OLDER if likeness is None else f"{unread}the model has learned from all of them"
    val = 0 if likeness is None else len(likeness.target)
    test = ShiftTest(n=0, of=count, val=val, level=FALSE_ALARMS, not_tested=why)
    return Compared(test, np.empty((0, 1, 1, 1), np.uint8), np.empty(0, np.int64))
