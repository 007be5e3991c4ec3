"""Draw splits at random from a seed: stratified by class, or with groups kept together."""

from __future__ import annotations

import numpy as np

REST = "train"


def draw_stratified(targets: np.ndarray, fractions: dict[str, float], seed: int) -> dict[str, np.ndarray]:
    """Draw splits in which each class has the same share as in the whole set, within one image if it has enough images.

    Args:
        targets: int64 [N], class indices.
        fractions: share of each split except ``train``, which gets the rest; their sum is less than 1.
        seed: of the draw.

    Returns:
        int64 indices of each split and of ``train``, in ascending order. Every image is in exactly one, and each class has
        at least one image in ``train``.
    """
    rng = np.random.default_rng(seed)
    counts = np.bincount(targets)
    room = np.maximum(counts - 1, 0)  # what may leave train
    shares = {}
    for name, fraction in fractions.items():
        shares[name] = np.minimum(_apportion(counts, fraction), room)
        room = room - shares[name]
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (*fractions, REST)}
    for label in range(len(counts)):
        members = rng.permutation(np.flatnonzero(targets == label))
        start = 0
        for name in fractions:
            parts[name].append(members[start : start + shares[name][label]])
            start += shares[name][label]
        parts[REST].append(members[start:])
    return {name: np.sort(np.concatenate(pieces)) for name, pieces in parts.items()}


def with_copies_together(drawn: dict[str, np.ndarray], same: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Splits as they were drawn, but with each copy of an image in the split of the first of its kind; or in train, if a class
    would have no image there.

    Args:
        drawn: int64 indices of each split, of N images in all.
        same: [N] of any kind; equal images have equal values.
        targets: int64 [N], class indices.
    """
    names = [REST, *(name for name in drawn if name != REST)]
    place = np.zeros(len(same), dtype=np.int64)
    for index, name in enumerate(names):
        place[drawn[name]] = index
    _, first, member = np.unique(same, return_index=True, return_inverse=True)
    place = place[first[member]]
    for label in np.unique(targets):
        if not (place[targets == label] == 0).any():
            place[np.isin(member, member[targets == label])] = 0
    return {name: np.flatnonzero(place == names.index(name)) for name in drawn}


def draw_grouped(
    amounts: np.ndarray, groups: np.ndarray, fractions: dict[str, float], seed: int
) -> dict[str, np.ndarray]:
    """Draw splits that keep each group together, with class shares as close to the whole set as the groups allow.

    The algorithm is greedy: groups are assigned from the largest to the smallest, each to the split where it brings the
    class counts closest to the target. A class without an image in ``train`` then gets its smallest group back.

    Args:
        amounts: int64 [N, K], how much each image has of each class.
        groups: [N]; images with equal values belong together.
        fractions: share of each split except ``train``, which gets the rest.
        seed: of the draw; it orders groups of one size.

    Returns:
        As `draw_stratified`; a split may be empty if there are few groups.
    """
    _, member = np.unique(groups, return_inverse=True)
    table = np.zeros((member.max(initial=-1) + 1, amounts.shape[1]), dtype=np.float64)  # [groups, classes]
    np.add.at(table, member, amounts)
    totals = table.sum(0)
    names = [REST, *fractions]
    share = np.array([1 - sum(fractions.values()), *fractions.values()])
    missing = share[:, None] * totals  # [splits, classes], what each split still wants
    weight = 1 / np.maximum(totals, 1)

    order = np.random.default_rng(seed).permutation(len(table))
    order = order[np.argsort(-table[order].sum(1), kind="stable")]
    place = np.zeros(len(table), dtype=np.int64)
    for group in order:
        cost = (weight * table[group] * (table[group] - 2 * missing)).sum(1)
        place[group] = int(np.argmin(cost))
        missing[place[group]] -= table[group]

    for label in np.flatnonzero(totals):
        holders = np.flatnonzero(table[:, label])
        if not np.any(place[holders] == 0):
            place[holders[np.argmin(table[holders].sum(1))]] = 0
    return {name: np.flatnonzero(place[member] == index) for index, name in enumerate(names)}


def _apportion(counts: np.ndarray, fraction: float) -> np.ndarray:
    """A share of each count, rounded down or up so that the sum is the share of the whole (largest remainder)."""
    exact = counts * fraction
    share = np.floor(exact).astype(np.int64)
    extra = round(float(counts.sum() * fraction)) - int(share.sum())
    if extra > 0:
        share[np.argsort(share - exact, kind="stable")[:extra]] += 1
    return share
