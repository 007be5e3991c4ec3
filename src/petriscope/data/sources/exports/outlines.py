"""Which pixels lie inside of outlines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from petriscope.data.sources.exports.annotations import Runs

CORNERS = 256  # edges at a time


def inside_rings(rings: Sequence[np.ndarray], height: int, width: int) -> tuple[tuple[slice, slice], np.ndarray]:
    """The pixels whose center lies inside of one of several polygons, by the even-odd rule.

    Args:
        rings: float64 [P, 2] each, x and y; pixel i spans from i to i + 1.

    Returns:
        the part of the image, rows and columns, that the polygons lie in; and bool [rows, columns] of it.
    """
    points = np.concatenate(rings)
    left, top = (
        int(np.clip(np.floor(value), 0, most)) for value, most in zip(points.min(0), (width, height), strict=True)
    )
    right, bottom = (
        int(np.clip(np.ceil(value), least, most))
        for value, least, most in zip(points.max(0), (left, top), (width, height), strict=True)
    )
    out = np.zeros((bottom - top, right - left), dtype=bool)
    for ring in rings:
        out |= _inside(ring - (left, top), *out.shape)
    return (slice(top, bottom), slice(left, right)), out


def _inside(ring: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixels inside of one polygon, bool [H, W]: those with an odd number of edges to their left."""
    crossed = np.zeros((height, width + 1), dtype=np.uint8)
    centers = np.arange(height) + 0.5
    starts, ends = ring, np.roll(ring, -1, axis=0)
    for first in range(0, len(ring), CORNERS):
        (x, y), (to_x, to_y) = starts[first : first + CORNERS].T[..., None], ends[first : first + CORNERS].T[..., None]
        spans = (y <= centers) != (to_y <= centers)  # [edges, rows]
        edges, rows = np.nonzero(spans)
        share = (centers[rows] - y[edges, 0]) / (to_y[edges, 0] - y[edges, 0])
        at = x[edges, 0] + share * (to_x[edges, 0] - x[edges, 0])
        columns = np.clip(np.ceil(at - 0.5), 0, width).astype(np.int64)
        np.bitwise_xor.at(crossed, (rows, columns), 1)
    return np.bitwise_xor.accumulate(crossed, axis=1)[:, :width].astype(bool)


def inside_runs(runs: Runs, height: int, width: int) -> tuple[tuple[slice, slice], np.ndarray]:
    """The pixels of a mask in runs, as `inside_rings` returns them."""
    rows, columns = runs.shape
    flat = np.repeat(np.arange(len(runs.counts)) % 2 == 1, runs.counts)
    mask = flat.reshape(rows, columns) if runs.by_rows else flat.reshape(columns, rows).T
    left, top = runs.corner
    skip_x, skip_y = max(-left, 0), max(-top, 0)
    mask = mask[skip_y : max(height - top, 0), skip_x : max(width - left, 0)]
    left, top = max(left, 0), max(top, 0)
    return (slice(top, top + mask.shape[0]), slice(left, left + mask.shape[1])), mask
