"""ImageSet and Dataset: the one form that images have, wherever they came from."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from petriscope.core.channels import MOST, Names, default_names
from petriscope.core.errors import DataError
from petriscope.core.names import SPLITS
from petriscope.data.index import row_digests
from petriscope.data.membership import Exposure, Membership, unpack
from petriscope.data.streamed import Streamed
from petriscope.tasks import Task, choose_task

CHUNK = 1024


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images, their targets and their names.

    Args:
        pixels: uint8 or uint16 [M, H, W, C], C 1 to 16; may be mapped from disk (`numpy.memmap`), or read from shards whenever
            images are taken (`Streamed`). The largest value of the type, 255 or 65535, is white.
        targets: as the task has them: labels, int64 [N], class indices from 0; or masks, uint8 [N, H, W], a class index
            or `petriscope.core.masks.IGNORE` per pixel.
        classes: class names; ``targets`` index it.
        ids: a name per image, [N] strings: the path below the source, or ``split/index``.
        groups: [N] strings; images of one group (one slide) stay together when splits are drawn.
        columns: what else the source says of each image, such as its scanner or its day: by name, [N] strings, empty where
            it says nothing. The column ``domain`` says where an image is from, see `domains`.
        rows: int64 [N], the row in ``pixels`` of each image; None: row i is image i. Lets the splits of one
            mapped array be views of it.
        known: an array and the hashes of its rows, uint8 [M, 16]; they are used as long as ``pixels`` is this array. Images
            that were scaled keep the hashes of what they were, so that they are recognized.
        sizes: height and width in pixels that each image had in its file, int [N, 2]; None: unknown.
        padded: images have these sizes in ``pixels`` too, in the top left corner of their rows. What is added is 0, and
            unlabeled in masks.
        named: whether the source names its classes; else it has numbers, and ``classes`` are the numbers from 0.
        task: what the targets are; None: the task whose targets look like these, see `petriscope.tasks.choose_task`.
        channels: C names; empty: `petriscope.core.channels.default_names`.

    Raises:
        DataError: the arrays do not fit together, or a target is out of range.
    """

    pixels: np.ndarray | Streamed
    targets: np.ndarray
    classes: tuple[str, ...]
    ids: np.ndarray
    groups: np.ndarray | None = None
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    rows: np.ndarray | None = None
    known: tuple[np.ndarray | Streamed, np.ndarray] | None = None
    sizes: np.ndarray | None = None
    padded: bool = False
    named: bool = True
    task: Task = None  # type: ignore[assignment]  # never None after construction
    channels: Names = ()

    def __post_init__(self) -> None:
        form = self.pixels.ndim == 4 and 1 <= self.pixels.shape[3] <= MOST
        if not form or self.pixels.dtype not in (np.uint8, np.uint16):
            raise DataError(
                f"images must be uint8 or uint16 [N, H, W, 1 to {MOST}], not {self.pixels.dtype} {list(self.pixels.shape)}"
            )
        if not self.channels:
            object.__setattr__(self, "channels", default_names(self.pixels.shape[3]))
        if len(self.channels) != self.pixels.shape[3]:
            raise DataError(f"{len(self.channels)} names for {self.pixels.shape[3]} channels")
        if self.task is None:
            object.__setattr__(self, "task", choose_task(self.targets))
        elif not self.task.accepts(self.targets):
            raise DataError(
                f"targets of the task {self.task.name} must be {self.task.targets_are}, not {self.targets.dtype} "
                f"{list(self.targets.shape)}"
            )
        arrays = {"ids": self.ids, "groups": self.groups, "rows": self.rows, "sizes": self.sizes, **self.columns}
        for name, array in arrays.items():
            if array is not None and len(array) != len(self):
                raise DataError(f"{len(array)} {name} for {len(self)} images")
        if self.rows is None and len(self.pixels) != len(self):
            raise DataError(f"{len(self.pixels)} images and {len(self)} targets")
        self.task.check(self.targets, self.classes, self.shape, self.ids)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every image."""
        height, width, channels = self.pixels.shape[1:]
        return int(height), int(width), int(channels)

    @property
    def bits(self) -> int:
        """8 or 16."""
        return 8 * self.pixels.dtype.itemsize

    @property
    def mapped(self) -> bool:
        """Whether images are read when they are taken, from an array on the disk or from shards."""
        return isinstance(self.pixels, np.memmap | Streamed)

    @property
    def array(self) -> np.ndarray:
        """`pixels`, where they are no shards."""
        assert isinstance(self.pixels, np.ndarray)
        return self.pixels

    @property
    def blocks(self) -> np.ndarray | None:
        """The block of the shards that each image is read with, int64 [N]; None if they are not in shards."""
        if not isinstance(self.pixels, Streamed):
            return None
        return self.pixels.table.blocks if self.rows is None else self.pixels.table.blocks[self.rows]

    @property
    def domains(self) -> np.ndarray | None:
        """Where each image is from: the source among several, or the column ``domain`` of a table, [N] strings."""
        return self.columns.get("domain")

    def with_column(self, name: str, values: np.ndarray) -> ImageSet:
        """The same images with one more column, [N] strings, or another one."""
        return replace(self, columns={**self.columns, name: values})

    @property
    def images(self) -> np.ndarray:
        """All images in memory, uint8 or uint16 [N, H, W, C]."""
        return np.asarray(self.pixels[slice(None) if self.rows is None else self.rows])

    @cached_property
    def counts(self) -> np.ndarray:
        """How much there is of each class, in what the task counts classes in, int64 [K]."""
        return self.task.counts(self.targets, len(self.classes))

    @cached_property
    def strata(self) -> np.ndarray:
        """The class that each image counts as where classes are to be balanced, int64 [N]."""
        return self.task.strata(self.targets, len(self.classes))

    @property
    def extents(self) -> np.ndarray:
        """Height and width of each image in its row of ``pixels``, int64 [N, 2]."""
        if self.padded and self.sizes is not None:
            return np.asarray(self.sizes, dtype=np.int64)
        return np.tile(np.array(self.shape[:2], dtype=np.int64), (len(self), 1))

    def extent(self, index: int) -> tuple[int, int]:
        """`extents` of one image."""
        height, width = self.sizes[index] if self.padded and self.sizes is not None else self.shape[:2]
        return int(height), int(width)

    def window(self, index: int, top: int = 0, left: int = 0, size: tuple[int, int] | None = None) -> np.ndarray:
        """The part of an image from a corner on, without what was added to it, uint8 [h, w, C]. Of an image that is mapped from
        disk, only its lines are read.

        Args:
            size: height and width, at most; None: all of it.
        """
        row, (bottom, right) = index if self.rows is None else int(self.rows[index]), self.extent(index)
        if size is not None:
            bottom, right = min(bottom, top + size[0]), min(right, left + size[1])
        if isinstance(self.pixels, Streamed):
            return self.pixels[np.array([row])][0, top:bottom, left:right]
        if not isinstance(self.pixels, np.memmap):
            return np.asarray(self.pixels[row, top:bottom, left:right])
        return _read_lines(self.pixels, row, top, bottom)[:, left:right]

    def take(self, indices: np.ndarray | Sequence[int]) -> np.ndarray:
        """The images at ``indices``, uint8 or uint16 [B, H, W, C]."""
        indices = np.asarray(indices)
        rows = indices if self.rows is None else self.rows[indices]
        return _read(self.pixels, rows) if isinstance(self.pixels, np.memmap) else np.asarray(self.pixels[rows])

    def subset(self, indices: np.ndarray) -> ImageSet:
        """Some of the images, as a view of the same pixels; masks are copied."""
        indices = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            targets=self.targets[indices],
            ids=self.ids[indices],
            groups=None if self.groups is None else self.groups[indices],
            sizes=None if self.sizes is None else self.sizes[indices],
            columns={name: values[indices] for name, values in self.columns.items()},
            rows=indices if self.rows is None else self.rows[indices],
        )

    def digests(self) -> list[bytes]:
        """A 16-byte hash of each image's pixels before it was scaled; equal images have equal hashes."""
        return unpack(self._hashes)

    def hashed(self) -> ImageSet:
        """The same images with their digests known, so that subsets do not compute them again."""
        if self.known is not None and self.known[0] is self.pixels:
            return self
        hashes = np.zeros((len(self.pixels), 16), dtype=np.uint8)
        hashes[slice(None) if self.rows is None else self.rows] = self._hashes
        return replace(self, known=(self.pixels, hashes))

    @cached_property
    def _hashes(self) -> np.ndarray:
        if self.known is not None and self.known[0] is self.pixels:
            return self.known[1] if self.rows is None else self.known[1][self.rows]
        chunks = (np.arange(start, min(start + CHUNK, len(self))) for start in range(0, len(self), CHUNK))
        return np.concatenate([np.empty((0, 16), dtype=np.uint8), *(row_digests(self.take(chunk)) for chunk in chunks)])


def _read(pixels: np.memmap, rows: np.ndarray) -> np.ndarray:
    """Rows of a mapped array, read rather than mapped. The system maps up to megabytes around every page that is used, and mapped
    pages count as memory of this process; so it stays small however large the file is."""
    if (handle := _handle_of(pixels)) is None:
        return np.asarray(pixels[rows])
    out = np.empty((len(rows), *pixels.shape[1:]), dtype=pixels.dtype)
    size = out[:1].nbytes
    for place, row in zip(out, np.where(rows < 0, rows + len(pixels), rows).tolist(), strict=True):
        if not 0 <= row < len(pixels):
            raise IndexError(f"row {row} of {len(pixels)}")
        _fill(place, handle, pixels, row * size)
    return out


def _read_lines(pixels: np.memmap, row: int, top: int, bottom: int) -> np.ndarray:
    """Lines ``top`` to ``bottom`` of a row of a mapped array, read as in `_read`."""
    if (handle := _handle_of(pixels)) is None:
        return np.asarray(pixels[row, top:bottom])
    out = np.empty((bottom - top, *pixels.shape[2:]), dtype=pixels.dtype)
    line = out[:1].nbytes
    _fill(out, handle, pixels, (row * pixels.shape[1] + top) * line)
    return out


def _handle_of(pixels: np.memmap) -> Any | None:
    """The open file of a mapped array; None if its rows cannot be read from it."""
    in_pieces = not pixels.flags.c_contiguous  # a row is not one piece of the file
    if not hasattr(os, "preadv") or not isinstance(pixels.base, mmap.mmap) or in_pieces or pixels.filename is None:
        return None
    handle = getattr(pixels, "handle", None)
    if handle is None:  # kept: the file may be unlinked while it is in use
        try:
            handle = pixels.handle = Path(pixels.filename).open("rb", buffering=0)  # noqa: SIM115
        except OSError:  # another process has dropped it from the cache; what is mapped stays
            return None
    return handle


def _fill(place: np.ndarray, handle: Any, pixels: np.memmap, start: int) -> None:
    if os.preadv(handle.fileno(), [place.data], pixels.offset + start) != place.nbytes:
        raise DataError(f"{pixels.filename} is shorter than it was; was it written to while in use?")


@dataclass(frozen=True)
class Audited:
    """An image that was left out or relabeled when the data were loaded, as an audit's decisions ask.

    Args:
        id: the image's name.
        split: the split it is in.
        label: its class in the source.
        decision: ``drop`` or ``relabel``.
        new_label: its class now; empty if it was dropped.
        reason: as the decisions give it.
    """

    id: str
    split: str
    label: str
    decision: str
    new_label: str
    reason: str


@dataclass(frozen=True, eq=False)
class Dataset:
    """Up to three image sets with the same classes, image shape and kind of targets.

    Args:
        train, val, test: the splits; any may be missing.
        source: what the user named.
        fingerprint: a hash of all pixels, targets and class names: equal data, equal fingerprint.
        warnings: what the user should know about the data, a sentence each.
        audited: what an audit's decisions left out or relabeled.
        membership: the split of every image of the source, also of those that are left out of their split; None: that of
            the image sets.
        drawn: the names of the splits that were drawn at random; the others are the source's.
        field_of_view: height and width of every image in micrometers; None: unknown.
    """

    train: ImageSet | None = None
    val: ImageSet | None = None
    test: ImageSet | None = None
    source: str = ""
    fingerprint: str = ""
    warnings: tuple[str, ...] = field(default=())
    audited: tuple[Audited, ...] = field(default=())
    membership: Membership | None = None
    drawn: tuple[str, ...] = field(default=())
    field_of_view: tuple[float, float] | None = None

    @property
    def splits(self) -> dict[str, ImageSet]:
        return {name: part for name in SPLITS if (part := getattr(self, name)) is not None}

    def split(self, name: str) -> ImageSet:
        """The split of that name.

        Raises:
            DataError: the source has none; the message says which it has.
        """
        if name not in self.splits:
            have = ", ".join(f"{key} ({len(part):,})" for key, part in self.splits.items())
            raise DataError(f"{self.source} has no {name} split; it has: {have}")
        return self.splits[name]

    def with_split(self, name: str, images: ImageSet) -> Dataset:
        """The same data set with other images in a split."""
        parts: dict[str, Any] = {name: images}
        return replace(self, **parts)

    @property
    def exposure(self) -> Exposure:
        """What a model that is trained on train and fitted on val has seen."""
        train, val = (frozenset(() if part is None else part.digests()) for part in (self.train, self.val))
        return Exposure(train, val)

    @property
    def classes(self) -> tuple[str, ...]:
        return next(iter(self.splits.values())).classes

    @property
    def task(self) -> Task:
        return next(iter(self.splits.values())).task

    @property
    def shape(self) -> tuple[int, int, int]:
        return next(iter(self.splits.values())).shape

    @property
    def channels(self) -> Names:
        """The names of the channels."""
        return next(iter(self.splits.values())).channels

    @property
    def bits(self) -> int:
        """8 or 16."""
        return next(iter(self.splits.values())).bits
