"""A sample of images that does not depend on how they are shared out: those whose pixels have the smallest hashes, each once.

Of any two sets, the sample of both together follows from their samples, so it is found shard by shard with memory that does not
grow with the number of images (a bottom-k sketch: Cohen and Kaplan, 2007, doi:10.1145/1281100.1281133)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from petriscope.core.files import atomic, parsing
from petriscope.inference.likeness import SHOWN, Compared, nothing
from petriscope.trust.two_sample import MOST, Likeness, Traits, compare, joined


def keys_of(digests: Sequence[bytes]) -> np.ndarray:
    """A number for each digest of an image, which is a hash already, uint64 [N]."""
    return np.frombuffer(b"".join(digest[:8] for digest in digests), dtype=np.uint64)


class Drawn:
    """The traits of images with the smallest keys, at most `MOST`, and a few images to show.

    Args:
        count: images that the sample is drawn from, with copies.
        keys: uint64 [S], ascending, at most `MOST`. Copies have one key.
        traits: of them; None: there are none yet.
        shown: the first of them, uint8 or uint16 [P, H, W, C], at most `SHOWN`.
    """

    def __init__(
        self,
        count: int = 0,
        keys: np.ndarray | None = None,
        traits: Traits | None = None,
        shown: np.ndarray | None = None,
    ) -> None:
        self.count, self.traits, self.shown = count, traits, shown
        self.keys = np.empty(0, np.uint64) if keys is None else keys

    def wanted(self, keys: np.ndarray) -> np.ndarray:
        """Which of some images may belong to the sample, int64 [R]."""
        return np.arange(len(keys)) if len(self.keys) < MOST else np.flatnonzero(keys < self.keys[-1])

    def add(self, count: int, keys: np.ndarray, traits: Traits | None, shown: np.ndarray | None) -> None:
        """Add images.

        Args:
            count: how many there are.
            keys, traits: of those that are `wanted`, [R], ascending; copies among them once.
            shown: of as many of them as may be shown, in the order of ``keys``.
        """
        self.count += count
        if traits is None or shown is None or not len(keys):
            return
        every = np.concatenate([self.keys, keys])
        order = np.unique(every, return_index=True)[1][:MOST]  # of equal ones, the first
        before = len(self.keys)
        images = shown if self.shown is None else np.concatenate([self.shown, shown])
        place = np.concatenate(
            [np.arange(0 if self.shown is None else len(self.shown)), before + np.arange(len(shown))]
        )
        kept = {int(row): number for number, row in enumerate(place)}
        self.shown = images[[kept[int(row)] for row in order[:SHOWN]]]
        both = traits if self.traits is None else joined([self.traits, traits])
        self.keys, self.traits = every[order], both.take(order)

    def merge(self, other: Drawn) -> None:
        """Add the images of another sample."""
        self.add(other.count, other.keys, other.traits, other.shown)

    def compared(self, likeness: Likeness | None, classes: tuple[str, ...]) -> Compared:
        """Compare the sample with val, as `petriscope.inference.likeness.compare_files` does.

        Args:
            likeness: what images of val are like; None: it is not known.
            classes: K names.
        """
        if likeness is None or self.traits is None or self.shown is None:
            return nothing(likeness, self.count)
        whole = len(self.keys) < MOST  # and then what is not in the sample are copies
        test = compare(likeness, self.traits, classes, len(self.keys) if whole else self.count)
        test = replace(test, copies=self.count - len(self.keys) if whole else 0)
        return Compared(test, self.shown, self.traits.predicted[: len(self.shown)])

    def write(self, path: Path) -> None:
        arrays = {"count": np.array(self.count), "keys": self.keys}
        if self.traits is not None and self.shown is not None:
            arrays |= {each.name: getattr(self.traits, each.name) for each in fields(Traits)} | {"shown": self.shown}
        with atomic(path) as temporary, temporary.open("wb") as handle:
            np.savez(handle, **arrays)  # type: ignore[arg-type]

    @classmethod
    def read(cls, path: Path) -> Drawn:
        """
        Raises:
            RequestError: the file is damaged.
        """
        with parsing(path, "remove it and its shard, and begin again"), np.load(path, allow_pickle=False) as found:
            traits = Traits(*(found[each.name] for each in fields(Traits))) if "shown" in found else None
            return cls(int(found["count"]), found["keys"], traits, found.get("shown"))
