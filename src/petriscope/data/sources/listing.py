"""Image sets over image files that were decoded into one array: what folders and tables share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from petriscope.data.decode import Decoded
from petriscope.data.imageset import ImageSet


@dataclass(frozen=True)
class ImageFile:
    """A file of a source that is made of files.

    Args:
        id: the image's name, as `ImageSet.ids` has it.
        path: where it lies.
        split: train, val or test, or ``all``.
        label: its class as the source says it.
    """

    id: str
    path: Path
    split: str
    label: str


def rows_by_split(decoded: Decoded, splits: Sequence[str]) -> dict[str, np.ndarray]:
    """The readable files of each split that has any: int64 indices into the list of files, in the splits' first order."""
    rows = {
        split: np.array([index for index in decoded.kept if splits[index] == split], dtype=np.int64)
        for split in dict.fromkeys(splits)
    }
    return {split: indices for split, indices in rows.items() if len(indices)}


def sets_over(
    decoded: Decoded,
    rows: dict[str, np.ndarray],
    targets: dict[str, np.ndarray],
    classes: tuple[str, ...],
    names: Sequence[str],
    groups: np.ndarray | None,
) -> dict[str, ImageSet]:
    """An image set a split, all of them views of the same pixels.

    Args:
        rows: from `rows_by_split`.
        targets: int64 class indices of each split's rows.
        names, groups: of all files; the names become ids.
    """
    ids = np.array(names)
    return {
        split: ImageSet(
            pixels=decoded.pixels,
            targets=targets[split],
            classes=classes,
            ids=ids[indices],
            groups=None if groups is None else groups[indices],
            rows=indices,
        )
        for split, indices in rows.items()
    }
