"""Image sets over image files that were decoded into one array, shared by folders and tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from petriscope.core.errors import DataError
from petriscope.core.files import readable
from petriscope.core.recipe import DataSection
from petriscope.data.decode_many import Decoded
from petriscope.data.imageset import ImageSet
from petriscope.data.in_memory import Within

PACKED = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
TEXT_TABLES = (".csv", ".tsv")
TABLES = (*TEXT_TABLES, ".parquet", ".pq")

# What other tools call the columns path and label, in lower case and without separators.
CALLED = {
    "path": re.compile("(?:image|img)?(?:file)?(?:path|name)|(?:image|img)(?:file)?|file"),
    "label": re.compile("class(?:name|label)?|labelname|category|target"),
    "split": re.compile("split"),
}


def is_called(name: str, wanted: str) -> bool:
    """Whether a column is called ``path``, ``label`` or ``split``, in one of the usual ways."""
    key = re.sub(r"[\W_]+", "", name.casefold())
    return key == wanted or CALLED[wanted].fullmatch(key) is not None


@dataclass(frozen=True)
class ImageFile:
    """An image file of a folder or a table.

    Args:
        id: the name of the image, as in `ImageSet.ids`.
        path: of the file, or the file itself if it is within another.
        split: train, val, test or ``all``.
        label: the class in the source; empty for a mask.
        mask: the file of its mask, if it has one or should have one.
    """

    id: str
    path: Path | Within
    split: str
    label: str
    mask: Path | None = None

    def __post_init__(self) -> None:
        # What is made of a source goes into files in UTF-8; the path alone keeps bytes that are not.
        object.__setattr__(self, "id", readable(self.id))
        object.__setattr__(self, "label", readable(self.label))

    @property
    def mask_file(self) -> Path:
        """``mask``, where there is one."""
        assert self.mask is not None
        return self.mask


def rows_by_split(decoded: Decoded, splits: Sequence[str]) -> dict[str, np.ndarray]:
    """The readable files of each split that has any, as int64 indices into the list of files. Splits are in the order of their
    first occurrence."""
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
    named: bool = True,
    columns: Mapping[str, np.ndarray] | None = None,
) -> dict[str, ImageSet]:
    """One image set per split, all of them views of the same pixels.

    Args:
        rows: from `rows_by_split`.
        targets: class indices, int64, of the rows of each split.
        names, groups, columns: of all files; the names become ids.
        named: whether the classes have names in the source or in the recipe.
    """
    ids = np.array(names)
    return {
        split: ImageSet(
            pixels=decoded.pixels,
            known=(decoded.pixels, decoded.digests),
            targets=targets[split],
            classes=classes,
            ids=ids[indices],
            groups=None if groups is None else groups[indices],
            sizes=decoded.sizes[indices],
            columns={name: values[indices] for name, values in (columns or {}).items()},
            rows=indices,
            named=named,
        )
        for split, indices in rows.items()
    }


def as_column(values: Iterable[str]) -> np.ndarray:
    """Values of a column, object [N]: equal values are one string in memory, since most columns have few."""
    known: dict[str, str] = {}
    return np.array([known.setdefault(value, value) for value in values], dtype=object)


def folder_column(names: Sequence[str]) -> dict[str, np.ndarray]:
    """The column that images in folders have: the folder that each lies in, as in its id."""
    return {"folder": as_column(str(PurePosixPath(name).parent) for name in names)}


def groups_of(section: DataSection, names: Sequence[str]) -> np.ndarray | None:
    """The groups of images by their ids: what the pattern ``section.group`` finds in them; None without a pattern.

    Raises:
        DataError: it finds nothing in an id.
    """
    if section.group is None:
        return None
    found = [re.search(section.group, name) for name in names]
    for name, match in zip(names, found, strict=True):
        if match is None:
            raise DataError(
                f"data.group: the pattern {section.group!r} matches nothing in {name}; every image needs a group"
            )
    return np.array([(m.group(1) or "") if m.re.groups else m.group(0) for m in found if m is not None])
