"""Arrays with a value per image and class, in blocks of images, so that what is computed from them takes little memory and
stays in the processor's cache."""

from __future__ import annotations

from collections.abc import Iterator

BLOCK_BYTES = 2**19


def row_blocks(rows: int, row_bytes: int, block_bytes: int = BLOCK_BYTES) -> Iterator[slice]:
    """Slices of ``rows`` rows, in order, each of about ``block_bytes``. There is one even if there are no rows."""
    size = max(1, block_bytes // max(1, row_bytes))
    for start in range(0, max(rows, 1), size):
        yield slice(start, min(start + size, rows))
