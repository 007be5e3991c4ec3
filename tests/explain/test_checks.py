"""The checks separate maps that mark what matters from maps that do not."""

import numpy as np
import pytest
import torch
from corner import corner_images, corner_predictor
from scipy.stats import spearmanr

from petriscope.explain import explain
from petriscope.explain.checks import (
    cell_ranks,
    centered_blob,
    check,
    deletion_and_insertion,
    rank_correlation,
    shuffle_weights,
    trusted,
    verdict,
)

RNG = np.random.default_rng


def areas(heat, images):
    predictor = corner_predictor()
    classes = np.ones(len(images), dtype=np.int64)
    return deletion_and_insertion(predictor, images, classes, cell_ranks(heat, RNG(0)))


def test_deleting_the_corner_beats_a_random_order_and_a_blob():
    images = corner_images(20)
    marked = np.zeros((20, 16, 16))
    marked[:, 1:5, 1:5] = 1
    deletion, insertion = areas(marked, images)
    at_random = areas(np.zeros_like(marked), images)
    blob = areas(np.repeat(centered_blob(16, 16)[None], 20, 0), images)
    reverse = areas(-marked, images)
    for worse in (at_random, blob, reverse):
        assert deletion.mean() < worse[0].mean() - 0.1
        assert insertion.mean() > worse[1].mean() + 0.1


def test_the_area_of_a_straight_curve_is_one_half():
    class Fixed:
        """The probability is the share of white pixels."""

        mean, shape = (0.0,), (14, 14, 1)

        def probabilities(self, images, tta):
            share = (images == 255).mean((1, 2, 3))
            return np.stack([1 - share, share], 1)

    images = np.full((2, 14, 14, 1), 255, dtype=np.uint8)
    deletion, _ = deletion_and_insertion(Fixed(), images, np.array([1, 1]), cell_ranks(np.zeros((2, 14, 14)), RNG(0)))
    np.testing.assert_allclose(deletion, 0.5, atol=0.02)  # a straight line from 1 to 0


def test_cells_rank_by_their_mean_and_ties_at_random():
    heat = np.zeros((1, 14, 14))
    heat[0, 4:6, 8:10] = 1  # cell (2, 4) of the 7 x 7 grid
    ranks = cell_ranks(heat, RNG(0))
    assert ranks.shape == (1, 49)
    assert sorted(ranks[0]) == list(range(49))
    assert ranks[0, 2 * 7 + 4] == 0
    assert not np.array_equal(ranks, cell_ranks(heat, RNG(1)))


@pytest.mark.parametrize(("height", "width"), [(28, 28), (5, 5), (10, 30), (3, 40)])
def test_every_cell_has_a_rank_at_any_size(height, width):
    ranks = cell_ranks(RNG(0).random((2, height, width)), RNG(0))
    assert ranks.shape == (2, min(7, height) * min(7, width))
    assert all(sorted(each) == list(range(ranks.shape[1])) for each in ranks)


def test_shuffled_weights_are_the_same_values_elsewhere():
    model = corner_predictor().model
    shuffled = shuffle_weights(model, 0)
    before, after = model.head[1].weight, shuffled.head[1].weight
    assert not torch.equal(before, after)
    torch.testing.assert_close(before.flatten().sort().values, after.flatten().sort().values)
    assert torch.equal(model.head[1].bias, shuffled.head[1].bias)
    assert torch.equal(shuffle_weights(model, 0).head[1].weight, after)


def test_shuffling_the_weights_moves_the_maps():
    predictor, images = corner_predictor(), corner_images(8)
    classes = np.ones(8, dtype=np.int64)
    before = explain(predictor, images, classes, "hires-cam")
    predictor.model = shuffle_weights(predictor.model, 0)
    after = explain(predictor, images, classes, "hires-cam")
    assert rank_correlation(before, after).mean() < 0.3


def test_rank_correlation_is_spearmans():
    first, second = RNG(0).random((3, 4, 5)).round(1), RNG(1).random((3, 4, 5)).round(1)
    expected = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(rank_correlation(first, second), expected)
    assert rank_correlation(first, np.zeros_like(first)).tolist() == [0, 0, 0]


def test_check_trusts_a_method_that_finds_the_corner():
    predictor, images = corner_predictor(), corner_images(24)
    found = check(predictor, images, ["hires-cam", "occlusion"])
    assert found["n"] == 24
    assert set(found["orders"]) == {"hires-cam", "occlusion", "random", "blob"}
    for method in ("hires-cam", "occlusion"):
        row = found["methods"][method]
        assert row["trusted"] and row["verdict"] == "better than a random order and than a centered blob"
        low, high = row["over_blob_ci95"]
        assert low <= row["over_blob"] <= high
        order = found["orders"][method]
        assert order["score"] == pytest.approx(order["insertion"] - order["deletion"])
        assert row["over_blob"] == pytest.approx(order["score"] - found["orders"]["blob"]["score"])
    assert check(predictor, images, ["hires-cam", "occlusion"]) == found


@pytest.mark.parametrize(
    ("over_random", "over_blob", "randomized", "words"),
    [
        ((0.1, 0.2), (0.1, 0.2), (0.0, 0.2), "better than a random order and than a centered blob"),
        (
            (0.1, 0.2),
            (-0.1, 0.1),
            (0.0, 0.2),
            "better than a random order, but no better than a centered blob: do not trust these maps",
        ),
        (
            (0.1, 0.2),
            (-0.2, -0.1),
            (0.0, 0.2),
            "better than a random order, but worse than a centered blob: do not trust these maps",
        ),
        ((-0.1, 0.1), (0.1, 0.2), (0.0, 0.2), "no better than a random order: do not trust these maps"),
        ((-0.3, -0.1), (-0.2, -0.1), (0.0, 0.2), "worse than a random order: do not trust these maps"),
        (
            (0.1, 0.2),
            (0.1, 0.2),
            (0.7, 0.8),
            "better than a random order and than a centered blob; but much the same, or the reverse, with shuffled weights: "
            "do not trust these maps",
        ),
        (
            (-0.1, 0.2),
            (0.1, 0.2),
            (-0.8, -0.7),
            "no better than a random order, and much the same, or the reverse, with shuffled weights: do not trust these maps",
        ),
    ],
)
def test_verdicts(over_random, over_blob, randomized, words):
    row = {"over_random_ci95": over_random, "over_blob_ci95": over_blob, "randomized_ci95": randomized}
    assert verdict(row) == words
    assert trusted(row) == ("do not trust" not in words)
