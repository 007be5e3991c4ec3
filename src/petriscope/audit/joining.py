"""Joins the splits of a source into one image set, so that each image can be compared with all others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from petriscope.data import cache
from petriscope.data.imageset import ImageSet
from petriscope.data.streamed import Streamed

CHUNK = 1024


def join(sets: Mapping[str, ImageSet], mark: str) -> tuple[ImageSet, np.ndarray]:
    """All images in one set, and the split of each, object [N].

    Args:
        sets: the splits; classes and image shapes must be equal.
        mark: their fingerprint. Separate memory-mapped arrays are joined in the cache under it.
    """
    parts = list(sets.values())
    splits = np.array([name for name, part in sets.items() for _ in range(len(part))], dtype=object)
    if len(parts) == 1:
        return parts[0], splits
    first = parts[0]
    groups = None
    if all(part.groups is not None for part in parts):
        groups = np.concatenate([np.asarray(part.groups).astype(str) for part in parts])

    def over(pixels: np.ndarray | Streamed, rows: np.ndarray | None = None) -> ImageSet:
        targets = np.concatenate([part.targets for part in parts])
        ids = np.concatenate([part.ids for part in parts])
        return ImageSet(pixels, targets, first.classes, ids, groups, rows=rows, channels=first.channels)

    if all(part.pixels is first.pixels and part.rows is not None for part in parts):
        return over(first.pixels, np.concatenate([np.asarray(part.rows) for part in parts])), splits
    if not any(part.mapped for part in parts):
        return over(np.concatenate([part.images for part in parts])), splits
    key = cache.make_key("joined", mark)
    shape = len(splits), *first.shape
    found, _ = cache.fetch_or_store(key, True, lambda: cache.store(key, shape, first.pixels.dtype, _blocks(parts)))
    return over(found), splits


def _blocks(parts: list[ImageSet]) -> Iterator[np.ndarray]:
    for part in parts:
        for start in range(0, len(part), CHUNK):
            yield part.take(np.arange(start, min(start + CHUNK, len(part))))
