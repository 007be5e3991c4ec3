"""Properties of drawn splits."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from petriscope.data.splits import draw_grouped, draw_stratified, with_copies_together

CLASSES = 5
labels = st.lists(st.integers(0, 4), min_size=1, max_size=80).map(lambda values: np.array(values, dtype=np.int64))
fractions = st.fixed_dictionaries({"test": st.floats(0.01, 0.45), "val": st.floats(0.01, 0.45)})
seeds = st.integers(0, 5)


def is_partition(parts: dict[str, np.ndarray], count: int) -> bool:
    return np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(count))


@settings(max_examples=60, deadline=None)
@given(labels, fractions, seeds)
@example(np.array([0, 0, 0, 1, 1, 1]), {"test": 0.4375, "val": 0.375}, 0)
def test_stratified(targets: np.ndarray, shares: dict[str, float], seed: int) -> None:
    parts = draw_stratified(targets, shares, seed)
    assert is_partition(parts, len(targets))
    assert all(np.array_equal(parts[name], again) for name, again in draw_stratified(targets, shares, seed).items())
    for label, count in enumerate(np.bincount(targets)):
        got = {name: int((targets[indices] == label).sum()) for name, indices in parts.items()}
        assert got["train"] >= min(count, 1)
        # A class with one image left for train has given all it can.
        exact = {name: abs(got[name] - share * count) <= 1 + 1e-9 for name, share in shares.items()}
        assert got["train"] == 1 or all(exact.values())


@settings(max_examples=60, deadline=None)
@given(labels, st.integers(1, 20), fractions, seeds)
def test_grouped(targets: np.ndarray, many: int, shares: dict[str, float], seed: int) -> None:
    groups = np.random.default_rng(seed).integers(0, many, len(targets)).astype(str)
    amounts = np.eye(CLASSES, dtype=np.int64)[targets]
    parts = draw_grouped(amounts, groups, shares, seed)
    assert is_partition(parts, len(targets))
    owners = [set(groups[indices]) for indices in parts.values()]
    assert sum(map(len, owners)) == len(set(groups))
    assert set(targets[parts["train"]]) == set(targets)
    assert all(
        np.array_equal(parts[name], again) for name, again in draw_grouped(amounts, groups, shares, seed).items()
    )


def test_masks_are_shared_out_by_their_pixels() -> None:
    rng = np.random.default_rng(0)
    amounts = rng.multinomial(100, [0.7, 0.2, 0.1], 300) * rng.integers(0, 2, (300, 3))
    parts = draw_grouped(amounts, np.arange(300) // 3, {"test": 0.2, "val": 0.1}, 0)
    for name, share in {"test": 0.2, "val": 0.1}.items():
        np.testing.assert_allclose(amounts[parts[name]].sum(0), share * amounts.sum(0), rtol=0.1)


def test_many_small_groups_come_near_the_shares() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 900)
    parts = draw_grouped(np.eye(3, dtype=np.int64)[targets], np.arange(900) // 3, {"test": 0.2, "val": 0.1}, 0)
    for label, count in enumerate(np.bincount(targets)):
        assert abs((targets[parts["test"]] == label).sum() - 0.2 * count) <= 4
        assert abs((targets[parts["val"]] == label).sum() - 0.1 * count) <= 4


def test_copies_are_in_the_split_of_the_first() -> None:
    targets, same = np.arange(400) % 4, np.arange(400) % 300
    plain = draw_stratified(targets, {"test": 0.2, "val": 0.2}, 0)
    drawn = with_copies_together(plain, same, targets)
    assert is_partition(drawn, 400) and list(drawn) == list(plain)
    for one, other in combinations(drawn.values(), 2):
        assert not np.intersect1d(same[one], same[other]).size
    assert all(60 < len(drawn[name]) < 100 for name in ("test", "val"))
    alone = with_copies_together(plain, np.arange(400), targets)
    assert all(np.array_equal(alone[name], plain[name]) for name in plain)
    few = {"val": np.array([0]), "train": np.array([1, 2])}
    kept = with_copies_together(few, np.array([0, 0, 1]), np.array([1, 1, 0]))
    assert kept["train"].tolist() == [0, 1, 2], "or class 1 would have no image to learn from"
