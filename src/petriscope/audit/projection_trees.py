"""Approximate nearest neighbors in nearly linear time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

LEAF = 128
TREES = 12


def near_pairs(
    points: np.ndarray, least: float, *, keep: int = 4, seed: int = 0, report: Callable[[int], None] | None = None
) -> np.ndarray:
    """Pairs of points with a cosine similarity of at least ``least``: for each point its ``keep`` nearest per tree.

    A forest of balanced trees of random splits (S. Dasgupta and Y. Freund, "Random projection trees and low dimensional
    manifolds", 2008, doi:10.1145/1374376.1374452). In each tree every node is split at the median of a projection, and
    the points of each leaf are compared with each other. Neighbors that one tree separates are kept together by another.
    Time is O(N log N), memory O(N).

    Args:
        points: float32 [N, D], of norm 1.
        least: cosine similarity, -1 to 1.
        keep: maximum number of pairs per point and tree; the nearest are kept.
        seed: for the projections.
        report: called after each tree with the number of trees done.

    Returns:
        int64 [P, 2], sorted, each pair once, with the smaller index first.
    """
    rng = np.random.default_rng(seed)
    found = [np.zeros((0, 2), np.int64)]
    for tree in range(TREES if len(points) > LEAF else 1):
        leaves = _leaves(points, rng)
        for start in range(0, len(leaves), 16):
            found.append(_compare(points, leaves[start : start + 16], least, keep))
        if report is not None:
            report(tree + 1)
    one, other = np.sort(np.concatenate(found), axis=1).T
    return np.stack(np.divmod(np.unique(one * len(points) + other), max(len(points), 1)), axis=1)


def _leaves(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The leaves of one tree, int64 [leaves, size]; -1 fills leaves with fewer points."""
    depth = max(0, int(np.ceil(np.log2(max(len(points), 1) / LEAF))))
    size = -(-len(points) >> depth)
    padded = np.full(size << depth, -1)
    padded[: len(points)] = rng.permutation(len(points))
    nodes = padded.reshape(1, -1)
    for _ in range(depth):
        chosen = nodes[np.arange(len(nodes))[:, None], rng.integers(0, max(1, nodes.shape[1] // 2), (len(nodes), 2))]
        direction = points[chosen[:, 0]] - points[chosen[:, 1]]
        direction += 1e-3 * rng.standard_normal(direction.shape, dtype=np.float32)
        place = np.empty(nodes.shape, np.float32)
        for row, (node, along) in enumerate(zip(nodes, direction, strict=True)):
            place[row] = points[node] @ along
        place[nodes < 0] = np.inf  # fillers end up in the last leaves
        half = nodes.shape[1] // 2
        nodes = np.take_along_axis(nodes, np.argpartition(place, half - 1, axis=1), axis=1).reshape(-1, half)
    return nodes


def _compare(points: np.ndarray, leaves: np.ndarray, least: float, keep: int) -> np.ndarray:
    members = points[leaves]
    cosine = members @ members.transpose(0, 2, 1)
    filler = leaves < 0
    cosine[filler[:, :, None] | filler[:, None, :]] = -2
    diagonal = np.arange(leaves.shape[1])
    cosine[:, diagonal, diagonal] = -2
    keep = min(keep, leaves.shape[1])
    nearest = np.argpartition(-cosine, keep - 1, axis=2)[:, :, :keep]
    close = np.take_along_axis(cosine, nearest, 2) >= least
    leaf, one, _ = np.nonzero(close)
    return np.stack([leaves[leaf, one], leaves[leaf, nearest[close]]], axis=1)
