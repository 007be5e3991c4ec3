"""Tests of differences, against brute force, scipy and their nominal error rates."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from petriscope.metrics.classification import ClassCounts, from_counts
from petriscope.metrics.segmentation import mean_iou
from petriscope.metrics.statistics import (
    METRICS,
    Difference,
    Sample,
    Variance,
    difference,
    holm,
    mcnemar,
    resample,
    resample_miou,
)


def networks(rng, seeds, images, share, classes=3, own=0.5):
    """Predictions whose mistakes are partly those of all seeds: [S, N] and targets [N]."""
    targets = rng.integers(0, classes, images)
    hard = rng.random(images)
    luck = own * rng.random((seeds, images)) + (1 - own) * hard
    wrong = luck > np.quantile(luck, share)
    return np.where(wrong, (targets + 1) % classes, targets), targets


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 5))
def test_mcnemar_is_the_binomial_test(only_first, only_second, both):
    first = np.array([True] * only_first + [False] * only_second + [True] * both, dtype=bool)
    second = np.array([False] * only_first + [True] * only_second + [True] * both, dtype=bool)
    expected = 1.0
    if only_first + only_second:
        expected = stats.binomtest(only_first, only_first + only_second).pvalue
    assert mcnemar(first, second) == pytest.approx(expected, abs=1e-12)
    assert mcnemar(second, first) == mcnemar(first, second)


def test_mcnemar_by_counting_all_outcomes():
    # 6 images that one alone got right, 5 of them the first: of 64 equally likely outcomes, 14 are as extreme.
    outcomes = [sum(o) for o in itertools.product((0, 1), repeat=6)]
    extreme = sum(o >= 5 or o <= 1 for o in outcomes) / len(outcomes)
    first = np.array([True] * 5 + [False] + [True] * 4)
    second = np.array([False] * 5 + [True] + [True] * 4)
    assert mcnemar(first, second) == pytest.approx(extreme) == 14 / 64


def test_holm_by_hand():
    # Holm's steps: 0.01 x 4, 0.02 x 3, then 0.03 x 2 and 0.04 x 1, which may not fall below what came before.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_p_and_bonferroni_and_keeps_the_order(p):
    out = holm(p)
    assert all(one <= corrected <= min(1.0, one * len(p)) + 1e-12 for one, corrected in zip(p, out, strict=True))
    assert out[int(np.argmin(p))] == min(1.0, min(p) * len(p))
    order = np.argsort(p, kind="stable")
    assert list(np.array(out)[order]) == sorted(out)


@pytest.mark.parametrize("metric", METRICS)
def test_values_are_those_of_the_metrics(metric):
    predicted, targets = networks(np.random.default_rng(0), 2, 90, 0.8)
    sample = resample(predicted, targets, 3, metric, resamples=20)
    for row, value in zip(predicted, sample.values, strict=True):
        assert value == pytest.approx(from_counts(*ClassCounts(targets, row, 3)(np.ones((1, len(row)))))[metric][0])
    assert sample.draws.shape == (2, 20)


@pytest.mark.parametrize("metric", METRICS)
def test_the_bootstrap_is_what_drawing_images_gives(metric):
    """The same resamples drawn one by one, as image indices."""
    predicted, targets = networks(np.random.default_rng(1), 2, 40, 0.7)
    sample = resample(predicted, targets, 3, metric, resamples=15, seed=4)
    drawn = np.random.default_rng(4).integers(0, 40, size=(15, 40))
    for r, indices in enumerate(drawn):
        for k in range(2):
            counts = ClassCounts(targets[indices], predicted[k, indices], 3)(np.ones((1, len(indices))))
            assert sample.draws[k, r] == pytest.approx(from_counts(*counts)[metric][0])


def test_one_network_each_has_the_standard_error_of_paired_shares():
    """The bootstrap's error against the closed form: (b + c - (b - c)^2 / N) / N^2, and an image more (Agresti, Min)."""
    predicted, targets = networks(np.random.default_rng(2), 2, 400, 0.85)
    sample = resample(predicted, targets, 3, resamples=4000)
    found = difference(sample[1:], sample[:1])
    first, second = sample.right
    b, c = (second & ~first).sum(), (first & ~second).sum()
    assert found.value == pytest.approx((b - c) / 400)
    assert found.variance.total == pytest.approx((b + c + 1 - (b - c) ** 2 / 400) / 400**2, rel=0.08)
    assert found.p == pytest.approx(mcnemar(first, second))
    assert found.ci95[0] < found.value < found.ci95[1]


@pytest.mark.parametrize("metric", METRICS)
def test_a_difference_turns_round_with_its_sides(metric):
    rng = np.random.default_rng(3)
    predicted, targets = networks(rng, 5, 300, 0.8)
    sample = resample(predicted, targets, 3, metric, resamples=300)
    one, other = difference(sample[:3], sample[3:]), difference(sample[3:], sample[:3])
    assert one.value == -other.value and one.p == pytest.approx(other.p)
    assert one.ci95 == pytest.approx((-other.ci95[1], -other.ci95[0]))
    same = difference(sample[:3], sample[:3])
    assert same.value == 0 and same.p == 1 and same.needed().images is None
    assert same.ci95[0] < 0 < same.ci95[1]


def test_seeds_of_many_images_are_welchs_test():
    """With the images' part gone, several seeds are two samples of metrics, and Student's test of unequal spread."""
    first, second = np.array([0.91, 0.93, 0.92]), np.array([0.95, 0.90, 0.94, 0.97])
    images = 2_000_000
    rng = np.random.default_rng(5)

    def sample(values):
        draws = values[:, None] + rng.normal(0, 1e-9, (len(values), 50))
        return Sample("accuracy", np.zeros((len(values), images), dtype=bool), values, draws)

    found = difference(sample(second), sample(first))
    welch = stats.ttest_ind(second, first, equal_var=False)
    assert found.p == pytest.approx(welch.pvalue, rel=1e-3)
    low, high = welch.confidence_interval(0.95)
    assert found.ci95 == pytest.approx((low, high), rel=1e-3)
    assert found.variance.seeds == pytest.approx(found.variance.total, rel=1e-6)


def test_methods_that_differ_by_the_luck_of_seeds_alone_are_not_told_apart():
    """Under no difference, p lies below 0.05 in at most about one of twenty; the images alone would say so far oftener."""
    rng = np.random.default_rng(6)
    rejected = over_images = 0
    trials = 120
    for _ in range(trials):
        hard = rng.normal(3.0, 1.2, 500)
        luck = rng.normal(0, 0.35, (6, 1)) + rng.normal(0, 0.5, (6, 500))
        sample = resample((hard + luck < 0).astype(int), np.zeros(500, dtype=int), 2, resamples=200)
        found = difference(sample[:3], sample[3:])
        rejected += found.p < 0.05
        over_images += abs(found.value) > 1.96 * math.sqrt(found.variance.images)
    assert rejected <= 0.05 * trials + 3 * math.sqrt(0.05 * 0.95 * trials)
    assert over_images > rejected + 10


def test_a_clear_difference_is_shown_and_a_small_one_says_what_it_needs():
    rng = np.random.default_rng(7)
    good, targets = networks(rng, 3, 800, 0.95)
    rng = np.random.default_rng(7)
    bad, _ = networks(rng, 3, 800, 0.80)
    sample = resample(np.concatenate([good, bad]), targets, 3, resamples=500)
    assert difference(sample[:3], sample[3:]).p < 0.001
    near = resample(np.concatenate([good, np.roll(good, 1, axis=0)[:1]]), targets, 3, resamples=500)
    needed = difference(near[:1], near[1:2]).needed()
    assert needed.seeds is None
    assert needed.images is not None and needed.images > 800


@given(st.integers(1, 60), st.integers(0, 60), st.integers(100, 400))
def test_images_needed_have_the_power_asked_for(more, fewer, agreed):
    """As many images of the same kind put the difference t + z standard errors from 0."""
    first = np.array([True] * more + [False] * fewer + [True] * agreed)
    second = np.array([False] * more + [True] * fewer + [True] * agreed)
    n = len(first)
    sample = resample(np.stack([~first, ~second]).astype(int), np.zeros(n, dtype=int), 2, resamples=200)
    found = difference(sample[:1], sample[1:])
    needed = found.needed()
    if more == fewer:
        assert needed.images is None
        return
    error = math.sqrt(found.variance.total * n / needed.images)
    assert abs(found.value) / error >= stats.norm.ppf(0.975) + stats.norm.ppf(0.8) - 1e-9
    fewer_images = max(needed.images - 1, 1)
    if fewer_images > 1:
        error = math.sqrt(found.variance.total * n / fewer_images)
        assert abs(found.value) / error < stats.norm.ppf(0.975) + stats.norm.ppf(0.8) + 1e-9


def test_more_seeds_are_no_cure_for_too_few_images():
    def needed(shared, value=0.01):
        variance = Variance(images=shared + 1e-5, seeds=2e-5, shared=shared, freedom=4.0)
        return Difference(value, (-1, 1), 0.5, variance, 1000, 3).needed()

    assert needed(shared=1e-4).seeds is None
    assert 3 < needed(shared=1e-6).seeds < 30
    assert needed(shared=1e-6, value=0.003).images is None  # the seeds alone vary by more


@given(st.integers(1, 4), st.integers(20, 120), st.floats(0, 1), st.sampled_from(METRICS))
def test_the_interval_of_a_mean_contains_it_and_stays_within_0_and_1(seeds, images, share, metric):
    rng = np.random.default_rng(images)
    targets = rng.integers(0, 3, images)
    predicted = np.where(rng.random((seeds, images)) < share, targets, (targets + 1) % 3)
    sample = resample(predicted, targets, 3, metric, resamples=100)
    low, high = sample.ci95
    assert 0 <= low <= high <= 1
    if metric == "accuracy":
        assert low - 1e-12 <= sample.mean <= high + 1e-12
        assert high - low > 0


def test_samples_of_other_images_are_refused():
    predicted, targets = networks(np.random.default_rng(8), 2, 40, 0.7)
    one, other = (
        resample(predicted, targets, 3, resamples=10),
        resample(predicted[:, :30], targets[:30], 3, resamples=10),
    )
    with pytest.raises(ValueError, match="same images"):
        difference(one[:1], other[1:])


class TestMeanIoU:
    def counts(self, networks=2, images=12, classes=3, seed=0):
        """Pixels that are a class, that are predicted as it, and both, from one confusion matrix per image."""
        rng = np.random.default_rng(seed)
        confusion = rng.integers(0, 30, (networks, images, classes, classes)) + 60 * np.eye(classes, dtype=int)
        hits = np.diagonal(confusion, axis1=2, axis2=3)
        return np.stack([confusion.sum(3), confusion.sum(2), hits], -1), confusion

    def test_values_are_those_of_the_evaluation(self):
        counts, confusion = self.counts()
        sample = resample_miou(counts, np.arange(12), 50)
        assert sample.values == pytest.approx([float(mean_iou(whole.sum(0))) for whole in confusion])
        assert sample.draws.shape == (2, 50) and sample.images == 12
        assert sample[:1].ci95[0] < sample.values[0] < sample[:1].ci95[1]

    def test_scenes_are_drawn_whole(self):
        counts, _ = self.counts()
        alone = resample_miou(counts, np.arange(12), 300)
        fivefold = resample_miou(np.tile(counts, (1, 5, 1, 1)), np.tile(np.arange(12), 5), 300)
        np.testing.assert_allclose(fivefold.draws, alone.draws)
        loose = resample_miou(np.tile(counts, (1, 5, 1, 1)), np.arange(60), 300)
        assert loose.draws.std() < 0.7 * alone.draws.std()

    def test_a_network_is_no_better_than_itself_and_better_than_a_worse_one(self):
        counts, _ = self.counts(images=40)
        worse = counts.copy()
        worse[..., 2] = counts[..., 2] // 2
        sample = resample_miou(np.concatenate([counts[:1], counts[:1], worse[:1]]), np.arange(40), 300)
        assert difference(sample[[0]], sample[[1]]).p == pytest.approx(1)
        assert difference(sample[[0]], sample[[2]]).p < 0.001
