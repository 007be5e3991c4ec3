"""Prediction sets have their nominal coverage and agree with their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from petriscope.metrics.conformal import (
    METHODS,
    RAPS_FREE,
    RAPS_PENALTY,
    _uniform,
    quantile,
    quantiles,
    scores,
    sets,
)


def drawn(n: int, seed: int, classes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are too sure, with classes of different frequency and difficulty."""
    rng = np.random.default_rng(seed)
    targets = rng.choice(classes, n, p=np.arange(1, classes + 1) / sum(range(1, classes + 1)))
    logits = rng.normal(size=(n, classes)) * 1.5
    logits[np.arange(n), targets] += 1.5 + 0.5 * targets
    return softmax(logits * 2, axis=1).astype(np.float32), targets


def limits(p: np.ndarray, targets: np.ndarray, level: float, method) -> np.ndarray:
    own = scores(p, method)[np.arange(len(p)), targets]
    return quantiles(own, targets, p.shape[1], level, method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_coverage_is_the_wanted_level(method, level):
    """Over draws of val and new images, up to chance: at least the level, at most 1 / (N + 1) above it."""
    found = []
    for seed in range(60):
        p, targets = drawn(600, seed)
        members = sets(p[300:], limits(p[:300], targets[:300], level, method), method)
        found.append(members[np.arange(300), targets[300:]].mean())
    error = np.std(found) / math.sqrt(len(found))
    rooms = 6 / 300 if method == "class" else 1 / 301  # a class has 14 images of val and more
    assert level - 4 * error < np.mean(found) < level + rooms * 3 + 4 * error


def test_every_class_is_covered_by_mondrian_and_not_by_lac():
    covered = {method: np.zeros(6) for method in ("lac", "class")}
    for seed in range(40):
        p, targets = drawn(2000, seed)
        for method in covered:
            members = sets(p[1000:], limits(p[:1000], targets[:1000], 0.9, method), method)
            hit = members[np.arange(1000), targets[1000:]]
            covered[method] += np.array([hit[targets[1000:] == k].mean() for k in range(6)]) / 40
    assert covered["class"].min() > 0.885
    assert covered["lac"].min() < 0.8  # the first class is the rarest and the hardest


def by_definition(row: np.ndarray, k: int, method: str, u: float) -> float:
    if method in ("lac", "class"):
        return 1 - row[k]
    rank = sorted(range(len(row)), key=lambda i: -row[i]).index(k) + 1
    above = sum(value for value in row if value > row[k])
    penalty = RAPS_PENALTY * max(0, rank - RAPS_FREE) if method == "raps" else 0
    return above + u * row[k] + penalty


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_those_of_the_definition(method):
    p, _ = drawn(40, 7)
    u = _uniform(p)
    expected = [[by_definition(row.astype(float), k, method, u[i]) for k in range(6)] for i, row in enumerate(p)]
    np.testing.assert_allclose(scores(p, method), expected, atol=1e-6)


def test_the_draws_of_aps_are_uniform_and_depend_on_the_image_alone():
    p, _ = drawn(4000, 1)
    u = _uniform(p)
    assert np.abs(np.sort(u) - np.arange(4000) / 4000).max() < 0.03  # Kolmogorov and Smirnov's at one in a thousand
    np.testing.assert_array_equal(u[[5, 3]], _uniform(p[[5, 3]]))


@pytest.mark.parametrize("method", METHODS)
def test_rounding_draws_no_other_share(method):
    """Batches of another size, or another number of processes, differ in the last bits."""
    p, targets = drawn(2000, 2)
    rounded = (p * (1 + 2e-7 * np.random.default_rng(3).normal(size=p.shape))).astype(np.float32)
    assert (rounded != p).any()
    np.testing.assert_allclose(scores(rounded, method), scores(p, method), atol=1e-4)
    limit = limits(p, targets, 0.9, method)
    assert (sets(rounded, limit, method) != sets(p, limit, method)).any(1).mean() < 0.002


def test_the_share_of_a_saturated_row_is_a_number():
    p = np.zeros((3, 4), np.float32)
    p[:, 2] = 1
    assert np.isfinite(scores(p, "aps")).all() and np.isfinite(scores(p, "raps")).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.floats(0.01, 0.99))
def test_the_quantile_is_the_rank_of_the_theorem(values, level):
    found = quantile(np.array(values), level)
    rank = math.ceil(round((len(values) + 1) * level, 9))
    assert found == (sorted(values)[rank - 1] if rank <= len(values) else math.inf)


def test_round_levels_are_not_pushed_up_by_rounding():
    assert quantile(np.arange(1.0, 100.0), 0.95) == 95  # (99 + 1) * 0.95 is 95, not 95.00000000000001


def test_a_class_without_images_of_val_is_in_every_set():
    p, targets = drawn(300, 2)
    some = targets != 4
    found = limits(p[some], targets[some], 0.9, "class")
    assert found[4] == np.inf and np.isfinite(np.delete(found, 4)).all()
    assert sets(p, found, "class")[:, 4].all()


@pytest.mark.parametrize("method", METHODS)
def test_larger_levels_have_larger_sets(method):
    p, targets = drawn(500, 3)
    smaller, larger = (sets(p, limits(p, targets, level, method), method) for level in (0.8, 0.95))
    assert (smaller <= larger).all() and larger.sum() > smaller.sum()


@pytest.mark.parametrize("level", [0, 1, 1.5])
def test_levels_outside_0_and_1_are_refused(level):
    with pytest.raises(ValueError, match="between 0 and 1"):
        quantiles(np.zeros(3), np.zeros(3, int), 2, level, "lac")
