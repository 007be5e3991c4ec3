"""Images that stay in their shards. They are read in blocks and decoded whenever they are used, so that neither the memory nor
the disk has to hold them."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from petriscope.core.errors import DataError, PetriscopeError
from petriscope.core.files import reason
from petriscope.data.decode import Form, Unreadable, read_image, workers
from petriscope.data.in_memory import InMemory

BLOCK_IMAGES, BLOCK_BYTES = 256, 1 << 22  # the most that are in a block of a tar file, unless one image is larger
GAP_BYTES = 1 << 16  # between images that are wanted; what is less is read with them
LEAD = 2048  # images before the first of a block is needed, its bytes are asked for
AHEAD = 3  # batches that are decoded at a time
READERS = 4  # blocks that are read at a time
TASK = 16  # images that a thread decodes at a time


@dataclass(frozen=True)
class Shard:
    """A tar or Parquet file that images are read from.

    Args:
        name: in messages.
        open: opens it.
        read: the bytes from one offset up to another.
        column: of the images in a Parquet file; empty: it is a tar file.
    """

    name: str
    open: Callable[[], BinaryIO]
    read: Callable[[int, int], bytes]
    column: str = ""

    def images(self, number: int, at: np.ndarray, sizes: np.ndarray, wanted: np.ndarray) -> list[bytes]:
        """The bytes of images in a block.

        Args:
            number: of the block in the shard. A block of a Parquet file is a row group.
            at, sizes: offset and bytes of each image of the block; offsets are not used for Parquet.
            wanted: places in the block, ascending.

        Raises:
            DataError: the shard cannot be read, or is not as it was.
        """
        try:
            return self._of_row_group(number, wanted) if self.column else self._of_tar(at[wanted], sizes[wanted])
        except PetriscopeError:
            raise
        except Exception as error:  # each file system raises kinds of its own
            raise DataError(f"{self.name} cannot be read: {reason(error)}") from None

    def _of_tar(self, at: np.ndarray, sizes: np.ndarray) -> list[bytes]:
        ends = at + sizes
        apart = np.flatnonzero(at[1:] > ends[:-1] + GAP_BYTES) + 1
        out = []
        for part in np.split(np.arange(len(at)), apart):
            start = int(at[part[0]])
            data = self.read(start, int(ends[part[-1]]))
            out += [data[a - start : b - start] for a, b in zip(at[part].tolist(), ends[part].tolist(), strict=True)]
        return out

    def _of_row_group(self, number: int, wanted: np.ndarray) -> list[bytes]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with self.open() as handle, pq.ParquetFile(handle) as file:
            column = file.read_row_group(number, columns=[self.column]).column(self.column)
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        column = column.field("bytes") if pa.types.is_struct(column.type) else column
        return [column[place].as_py() or b"" for place in wanted.tolist()]


def on_disk(path: Path, column: str = "", name: str = "") -> Shard:
    """A shard on the disk."""

    def read(start: int, stop: int) -> bytes:
        with path.open("rb") as handle:
            handle.seek(start)
            return handle.read(stop - start)

    return Shard(name or str(path), lambda: path.open("rb"), read, column)


class Table(NamedTuple):
    """Where images are in their shards; all arrays have an entry per image.

    Args:
        at: offsets in tar files, int64 [M].
        sizes: bytes, int64 [M].
        sums: CRC-32 of the bytes of each image when it was first read, uint32 [M].
        blocks: the block that each image is in, int64 [M], ascending from 0 without gaps.
        shards: the shard of each block, int64 [B], ascending.
    """

    at: np.ndarray
    sizes: np.ndarray
    sums: np.ndarray
    blocks: np.ndarray
    shards: np.ndarray


class Streamed:
    """Images in shards, which stand where an array [M, H, W, C] of uint8 or uint16 can, as far as rows are taken from it.

    Args:
        shards: the files.
        table: where the images are in them.
        size: height and width of all images.
        form: what they are decoded to.
    """

    ndim = 4

    def __init__(self, shards: Sequence[Shard], table: Table, size: tuple[int, int], form: Form) -> None:
        self.shards, self.table, self.size, self.form = shards, table, size, form
        self.shape, self.dtype = (len(table.at), *size, form.count), form.dtype
        self._starts = np.searchsorted(table.blocks, np.arange(len(table.shards) + 1))
        self._first_of_shard = np.searchsorted(table.shards, np.arange(len(shards)))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        """The images at ``rows``, [B, H, W, C]."""
        rows = np.arange(len(self))[rows]
        return next(self.read([rows])) if len(rows) else np.empty((0, *self.shape[1:]), dtype=self.dtype)

    def read(self, batches: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """The images of each batch of rows, in turn, each [B, H, W, C]. The next ones are read and decoded meanwhile.

        Each block is read once; what is in memory of it is dropped after its last image.

        Raises:
            DataError: a shard cannot be read, or an image is no longer what it was.
        """
        rows = np.concatenate([np.empty(0, dtype=np.int64), *batches])
        ends = np.cumsum([len(batch) for batch in batches])
        blocks = self.table.blocks[rows]
        known, first = np.unique(blocks, return_index=True)
        last = len(rows) - 1 - np.unique(blocks[::-1], return_index=True)[1]
        once = np.unique(rows)
        by_block = np.split(once, np.flatnonzero(np.diff(self.table.blocks[once])) + 1)
        wanted = deque(np.argsort(first, kind="stable").tolist())
        done_with = deque(np.argsort(last, kind="stable").tolist())
        held: dict[int, Future[dict[int, bytes]]] = {}
        under_way: deque[tuple[np.ndarray, list[Future[None]]]] = deque()
        asked = 0
        with ExitStack() as pools:
            readers = pools.enter_context(ThreadPoolExecutor(min(READERS, max(len(known), 1))))
            decoders = pools.enter_context(ThreadPoolExecutor(workers()))
            pools.callback(decoders.shutdown, wait=False, cancel_futures=True)  # if no more batches are taken
            pools.callback(readers.shutdown, wait=False, cancel_futures=True)
            for number in range(len(batches)):
                while asked < len(batches) and len(under_way) < AHEAD:
                    while wanted and first[wanted[0]] < ends[asked] + LEAD:
                        place = wanted.popleft()
                        block = int(known[place])
                        held[block] = readers.submit(self._bytes_of, block, by_block[place])
                    under_way.append(self._start(decoders, batches[asked], held))
                    asked += 1
                images, tasks = under_way.popleft()
                for task in tasks:
                    task.result()
                while done_with and last[done_with[0]] < ends[number]:
                    del held[int(known[done_with.popleft()])]
                yield images

    def _start(
        self, pool: ThreadPoolExecutor, rows: np.ndarray, held: dict[int, Future[dict[int, bytes]]]
    ) -> tuple[np.ndarray, list[Future[None]]]:
        out = np.empty((len(rows), *self.shape[1:]), dtype=self.dtype)
        tasks = []
        for start in range(0, len(rows), TASK):
            some = rows[start : start + TASK].tolist()
            data = [held[block] for block in self.table.blocks[some].tolist()]
            tasks.append(pool.submit(self._decode, some, data, out[start : start + TASK]))
        return out, tasks

    def _decode(self, rows: Sequence[int], held: Sequence[Future[dict[int, bytes]]], out: np.ndarray) -> None:
        for row, data, place in zip(rows, held, out, strict=True):
            content = data.result()[row]
            shard = self.shards[self.table.shards[self.table.blocks[row]]].name
            if zlib.crc32(content) != self.table.sums[row]:
                raise DataError(f"{shard} has changed since training was begun; start again when nothing writes to it")
            try:
                place[...] = read_image(InMemory(shard, content), self.size, self.form)[0]
            except Unreadable as error:
                raise DataError(f"an image of {shard} cannot be read: {error}") from None

    def _bytes_of(self, block: int, rows: np.ndarray) -> dict[int, bytes]:
        start, stop = self._starts[block : block + 2]
        shard = int(self.table.shards[block])
        at, sizes = self.table.at[start:stop], self.table.sizes[start:stop]
        found = self.shards[shard].images(block - int(self._first_of_shard[shard]), at, sizes, rows - start)
        return dict(zip(rows.tolist(), found, strict=True))


def blocks_of_tar(sizes: np.ndarray) -> np.ndarray:
    """The number of the block of each image of a tar file, int64 [N], from the bytes of the images, in their order."""
    out = np.empty(len(sizes), dtype=np.int64)
    block = count = held = 0
    for place, size in enumerate(sizes.tolist()):
        if count and (count == BLOCK_IMAGES or held + size > BLOCK_BYTES):
            block, count, held = block + 1, 0, 0
        out[place], count, held = block, count + 1, held + size
    return out


def windowed(blocks: np.ndarray, window: int, seed: int, epoch: int, size: int | None = None) -> np.ndarray:
    """The order of images in an epoch in which they can be read block by block: the blocks are shuffled, and then the images
    within each window of so many.

    It depends on the arguments alone. Epochs follow one another: with ``size``, an epoch begins where the one before has ended,
    so that no image is taken twice before all were taken once.

    Args:
        blocks: the block of each image, int64 [N].
        window: images.
        size: of an epoch; None: N.

    Returns:
        int64 [size], indices into ``blocks``.
    """
    count = len(blocks)
    size = size or count
    start = epoch * size
    passes = range(start // count, -(-(start + size) // count))
    order = np.concatenate([_one_pass(blocks, window, seed, each) for each in passes])
    return order[start - passes[0] * count :][:size]


def _one_pass(blocks: np.ndarray, window: int, seed: int, number: int) -> np.ndarray:
    rng = np.random.default_rng([seed, 5, number])
    _, place = np.unique(blocks, return_inverse=True)
    by_block = np.argsort(rng.permutation(place.max() + 1)[place], kind="stable")
    windows = np.arange(len(blocks)) // window
    return by_block[np.lexsort((rng.random(len(blocks)), windows))]
