"""Small representations of images for matching, and the eight symmetries of the square."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from petriscope.core.channels import MOST
from petriscope.core.drawing import BT601
from petriscope.core.errors import DataError
from petriscope.core.progress import progress
from petriscope.data.imageset import ImageSet

CHUNK_BYTES = 1 << 20  # read at once, so that intermediate results stay in the CPU cache
WHOLE = 257  # white pixels whose sum still fits in uint16
OPPONENT = np.array([BT601, [0.5, -0.5, 0], [-0.25, -0.25, 0.5]], np.float32)  # luma, red-green, blue
SYMMETRIES = (
    "", "rotated 90°", "rotated 180°", "rotated 270°",
    "mirrored", "mirrored and rotated 90°", "mirrored and rotated 180°", "mirrored and rotated 270°",
)  # fmt: skip
"""Rotations are clockwise. Mirroring is left to right and comes before the rotation."""


def check_images(images: ImageSet | np.ndarray) -> tuple[int, int, int, int]:
    """The shape of the images, (N, H, W, C).

    Raises:
        DataError: they are not uint8 or uint16 [N, H, W, 1 to 16].
    """
    if isinstance(images, ImageSet):
        return (len(images), *images.shape)
    if images.dtype not in (np.uint8, np.uint16) or images.ndim != 4 or not 1 <= images.shape[3] <= MOST:
        raise DataError(
            f"images must be uint8 or uint16 [N, H, W, 1 to {MOST}], not {images.dtype} {list(images.shape)}"
        )
    return images.shape


def chunks(
    images: ImageSet | np.ndarray, label: str, quiet: bool, indices: np.ndarray | None = None
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield all images in order, or those at ``indices``, about a megabyte at a time: their positions and uint8 [B, H, W, C].
    Of 16 bits, the nearest of 256 levels is taken."""
    count, *shape = check_images(images)
    indices = np.arange(count) if indices is None else indices
    step = max(1, CHUNK_BYTES // max(int(np.prod(shape)), 1))
    with progress(label, len(indices)) as bar:
        for start in range(0, len(indices), step):
            at = slice(start, min(start + step, len(indices)))
            yield at, as_bytes(images.take(indices[at]) if isinstance(images, ImageSet) else images[indices[at]])
            if not quiet:
                bar.advance(at.stop - at.start)


def as_bytes(block: np.ndarray) -> np.ndarray:
    """uint8 or uint16 -> uint8, rounded to the nearest."""
    return block if block.dtype == np.uint8 else ((block.astype(np.uint32) + 128) // 257).astype(np.uint8)


def shrink(block: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Area averages: uint8 [B, H, W, C] -> float32 [B, h, w, C] of 0 to 255."""
    count, height, width, channels = block.shape
    if (height, width) == size:
        return block.astype(np.float32)
    down, across = height // size[0], width // size[1]
    if (height, width) == (down * size[0], across * size[1]) and down * across <= WHOLE:
        return _sums(_sums(block, 1, down), 2, across) / np.float32(down * across)
    out = block.reshape(count, height, width * channels).astype(np.float32)
    out = np.matmul(_averaging(height, size[0]), out)
    return np.matmul(_averaging(width, size[1]), out.reshape(count * size[0], width, channels)).reshape(
        count, *size, channels
    )


def _sums(block: np.ndarray, axis: int, number: int) -> np.ndarray:
    """Sums of ``number`` neighbors along an axis, uint16."""
    each = [block[(slice(None),) * axis + (slice(start, None, number),)] for start in range(number)]
    out = each[0].astype(np.uint16)
    for other in each[1:]:
        out += other
    return out


def _averaging(length: int, size: int) -> np.ndarray:
    """float32 [size, length]: the weight of each pixel in each cell of a coarser grid."""
    edges = np.linspace(0, length, size + 1)
    pixel = np.arange(length)
    shared = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return (np.maximum(shared, 0) * size / length).astype(np.float32)


def cosines(length: int, count: int) -> np.ndarray:
    """The first ``count`` vectors of the orthonormal DCT-II, float32 [count, length]."""
    angle = np.pi / length * (np.arange(length) + 0.5) * np.arange(count)[:, None]
    out = np.cos(angle) * np.sqrt(2 / length)
    out[0] /= np.sqrt(2)
    return out.astype(np.float32)


def low_frequencies(images: np.ndarray, count: int) -> np.ndarray:
    """The lowest frequencies of luma and color: float32 [B, h, w, C] -> [B, count, count, C]. Means are set to 0."""
    channels = images.shape[3]
    count_h, count_w = min(count, images.shape[1]), min(count, images.shape[2])
    rows = np.tensordot(images, cosines(images.shape[2], count_w), (2, 1))  # [B, h, C, v]
    out = np.tensordot(rows, cosines(images.shape[1], count_h), (1, 1)).transpose(0, 3, 2, 1)  # [B, u, v, C]
    if channels == 3:
        out = out @ OPPONENT.T
    padded = np.zeros((len(out), count, count, channels), np.float32)
    padded[:, :count_h, :count_w] = out
    padded[:, 0, 0] = 0
    return padded


def orient_frequencies(frequencies: np.ndarray, symmetry: int) -> np.ndarray:
    """Apply a symmetry to the output of `low_frequencies`, [B, k, k, C] -> [B, k, k, C], without the pixels.

    Mirroring changes the sign of cosines of odd frequency.
    """
    flip = np.where(np.arange(frequencies.shape[1]) % 2, -1, 1).astype(np.float32)
    turns, mirrored = symmetry % 4, symmetry >= 4
    out = frequencies * flip[None, None, :, None] if mirrored else frequencies
    if turns == 2:
        return out * flip[None, :, None, None] * flip[None, None, :, None]
    if turns % 2:
        out = out.transpose(0, 2, 1, 3)  # 90° clockwise: transpose, then mirror left to right
        return out * (flip[None, None, :, None] if turns == 1 else flip[None, :, None, None])
    return out


def orient(images: np.ndarray, symmetry: int) -> np.ndarray:
    """Apply a symmetry to images [B, H, W, C]; the result is a view."""
    out = images[:, :, ::-1] if symmetry >= 4 else images
    return np.rot90(out, -(symmetry % 4), (1, 2))


def possible_symmetries(height: int, width: int) -> tuple[int, ...]:
    """The symmetries that keep the shape of the image, as indices into `SYMMETRIES`."""
    return tuple(range(8)) if height == width else (0, 2, 4, 6)


def invariants(frequencies: np.ndarray, square: bool) -> np.ndarray:
    """Features that are equal for an image and all its rotations and reflections.

    A symmetry changes signs and swaps (u, v) with (v, u), so the magnitudes, sorted within each such pair, are invariant.
    The distance between two images is never larger in these features than in their frequencies in the best orientation.

    Args:
        frequencies: [B, k, k, C], from `low_frequencies`.
        square: whether rotations by 90° are possible.

    Returns:
        float32 [B, D], of norm 1 (or 0).
    """
    size = np.abs(frequencies)
    if square:
        upper = np.triu_indices(size.shape[1], 1)
        diagonal = np.arange(size.shape[1])
        swapped = size.transpose(0, 2, 1, 3)
        pairs = [
            np.maximum(size, swapped)[:, *upper],
            np.minimum(size, swapped)[:, *upper],
            size[:, diagonal, diagonal],
        ]
        size = np.concatenate(pairs, axis=1)
    flat = size.reshape(len(size), int(np.prod(size.shape[1:])))
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return flat / np.where(length > 0, length, 1)
