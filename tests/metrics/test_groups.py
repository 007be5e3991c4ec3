"""Images of one group are not independent. What is computed over images as if they were is too narrow; over groups it holds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from petriscope.core.results import about_groups
from petriscope.metrics.classification import full_metrics
from petriscope.metrics.conformal import quantile, quantiles
from petriscope.metrics.intervals import bootstrap_weights, group_index, percentile95, proportion95, wilson
from petriscope.metrics.selective import fewest_groups, guaranteed_threshold
from petriscope.metrics.statistics import METRICS, difference, mcnemar, resample, resample_miou, sign_flips

SIZE = 20  # images per group


def in_groups(values: np.ndarray, rng: np.random.Generator, noise: float = 0.3) -> np.ndarray:
    """Values of images: mostly that of their group, float [G * SIZE]."""
    return np.repeat(values, SIZE) + noise * rng.normal(size=len(values) * SIZE)


def indices(groups: int) -> np.ndarray:
    return np.repeat(np.arange(groups), SIZE)


# ----------------------------------------------------------------------------------------------------- intervals


def test_intervals_over_groups_have_their_coverage_and_those_over_images_do_not():
    groups, runs, index = 25, 300, indices(25)
    rng = np.random.default_rng(0)
    held = dict.fromkeys(("images", "groups", "bootstrap of images", "bootstrap of groups"), 0)
    weights = {
        key: np.concatenate(list(bootstrap_weights(len(index), 200, index=i)))
        for key, i in (("bootstrap of images", None), ("bootstrap of groups", index))
    }
    for _ in range(runs):
        right = in_groups(rng.normal(size=groups), rng) > -0.7
        truth = 0.7488  # of a standard normal with noise of 0.3 above -0.7
        spans = {"images": proportion95(right), "groups": proportion95(right, index)}
        for key, drawn in weights.items():
            spans[key] = percentile95(drawn @ right / drawn.sum(1))
        for key, (low, high) in spans.items():
            held[key] += low <= truth <= high
    shares = {key: count / runs for key, count in held.items()}
    assert shares["images"] < 0.6 and shares["bootstrap of images"] < 0.6
    assert shares["groups"] > 0.92 and shares["bootstrap of groups"] > 0.88


@given(hits=st.lists(st.booleans(), min_size=1, max_size=60), groups=st.integers(2, 12))
def test_an_interval_over_groups_holds_its_proportion(hits, groups):
    right = np.array(hits)
    index = np.arange(len(right)) % groups
    low, high = proportion95(right, index)
    if len(right) == 1:
        assert math.isnan(low) and math.isnan(high)
    else:
        assert 0 <= low <= right.mean() + 1e-12 and right.mean() - 1e-12 <= high <= 1 and high - low > 0


def test_where_all_agree_every_group_counts_once():
    low, high = proportion95(np.ones(1000, bool), indices(50))
    assert high == 1 and 0.9 < low < wilson(50, 50)[0] + 0.01 < wilson(1000, 1000)[0]


@pytest.mark.parametrize("names", [None, np.array(["a", "b", "c"])])
def test_images_that_share_no_group_are_independent(names):
    assert group_index(names) is None


def test_one_group_has_metrics_and_no_interval():
    p = np.random.default_rng(0).dirichlet([1, 1, 1], 40)
    targets = np.arange(40) % 3
    found = full_metrics(p, targets, ("a", "b", "c"), 50, index=np.zeros(40, int))
    alone = full_metrics(p, targets, ("a", "b", "c"), 50)
    assert found["groups"] == 1 and "groups" not in alone
    for key in ("accuracy", "balanced_accuracy", "macro_f1", "auc", "nll", "brier"):
        assert found[key] == alone[key] and found[f"{key}_ci95"] == [None, None] != alone[f"{key}_ci95"]
    assert found["ece"] == alone["ece"] and "ece_if_calibrated" in alone and "ece_if_calibrated" not in found
    assert found["undefined"] == {"ci95": "there is one group of images"} and "undefined" not in alone
    assert all(row["recall_ci95"] == [None, None] for row in found["per_class"].values())


def test_a_group_that_outweighs_the_others_is_told():
    """Its images are a large share of each resample or of none, which leaves intervals too narrow."""
    rng = np.random.default_rng(4)
    index, held = np.repeat(np.arange(20), [500] + [26] * 19), 0
    for _ in range(200):
        hits = rng.random(len(index)) < np.clip(rng.normal(0.85, 0.08, 20), 0, 1)[index]
        low, high = proportion95(hits, index)
        held += low <= 0.85 <= high
    assert held / 200 < 0.85
    found = full_metrics(np.full((len(index), 2), 0.5), index % 2, ("a", "b"), 10, index=index)
    assert (found["groups"], found["largest_group"]) == (20, 500)
    (sentence,) = about_groups(found["n"], 20, 500)
    assert "The largest of 20 has 500 of 994 images" in sentence
    for even in (about_groups(1000, 20, 50), about_groups(1000, 20)):
        assert "largest" not in even[0]


def test_one_image_has_no_interval_by_resampling():
    found = full_metrics(np.array([[0.2, 0.8]]), np.array([1]), ("a", "b"), 50)
    assert (
        found["accuracy"] == 1 and found["nll_ci95"] == [None, None] and found["balanced_accuracy_ci95"] == [None, None]
    )


def test_intervals_of_all_metrics_widen_with_groups():
    rng = np.random.default_rng(3)
    targets = rng.integers(0, 3, 30 * SIZE)
    skill = np.repeat(rng.normal(1, 2, 30), SIZE)
    logits = rng.normal(size=(len(targets), 3)) + skill[:, None] * np.eye(3)[targets]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    plain, grouped = (full_metrics(p, targets, ("a", "b", "c"), 300, index=i) for i in (None, indices(30)))
    for key in ("accuracy", "balanced_accuracy", "macro_f1", "auc", "nll", "brier"):
        assert np.ptp(grouped[f"{key}_ci95"]) > 1.5 * np.ptp(plain[f"{key}_ci95"]), key


# ----------------------------------------------------------------------------------------- thresholds and sets


def test_guaranteed_thresholds_hold_over_groups_and_not_over_images():
    """A third of the groups are hard: nearly all of their images are wrong, however sure the network is. A draw of 15 groups
    often has too few of these, and its 300 images then seem to prove an error rate that new groups do not have."""
    wanted, runs, groups = 0.3, 100, 15
    index = indices(groups)
    rng = np.random.default_rng(1)
    broken = dict.fromkeys(("images", "groups"), 0)
    for _ in range(runs):
        wrong = np.where(rng.random(groups) < 0.35, 0.95, 0.01)  # 34 % of new images are wrong at any confidence
        right = rng.random(len(index)) >= np.repeat(wrong, SIZE)
        doubt = rng.random(len(index)).astype(np.float32)
        broken["images"] += guaranteed_threshold(doubt, right, wanted) is not None
        broken["groups"] += guaranteed_threshold(doubt, right, wanted, index=index) is not None
    assert broken["images"] / runs > 0.12  # 5 % were promised
    assert broken["groups"] / runs <= 0.05
    easy = [guaranteed_threshold(doubt, rng.random(len(index)) >= 0.01, wanted, index=index) for _ in range(10)]
    assert sum(found is not None for found in easy) > 8


@pytest.mark.parametrize("wanted", [0.01, 0.05, 0.2])
def test_too_few_groups_guarantee_nothing(wanted):
    needed = fewest_groups(wanted)
    for groups, found in ((3, False), (needed - 1, False), (needed, True)):
        index = indices(groups)
        doubt = np.random.default_rng(0).random(len(index)).astype(np.float32)
        threshold = guaranteed_threshold(doubt, np.ones(len(index), bool), wanted, index=index)
        assert (threshold is not None) == found
        if threshold is not None:
            assert threshold.answered == len(index) and threshold.delta == 0.05


def test_prediction_sets_cover_new_groups_and_those_over_images_do_not():
    level, groups, runs = 0.9, 12, 1500
    rng = np.random.default_rng(2)
    index, targets = indices(groups), np.zeros(groups * SIZE, int)
    covered = dict.fromkeys(("images", "groups", "class"), 0)
    for _ in range(runs):
        scores = in_groups(rng.standard_normal(groups + 1), rng)
        val, new = scores[:-SIZE], scores[-1]
        covered["images"] += new <= quantile(val, level)
        covered["groups"] += new <= quantile(val, level, index)
        covered["class"] += new <= quantiles(val, targets, 1, level, "class", index)[0]
    shares = {key: count / runs for key, count in covered.items()}
    assert shares["images"] < 0.88
    assert 0.89 < shares["groups"] <= shares["class"] < shares["groups"] + 0.01  # limits are raised a little


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.floats(0.01, 0.99))
def test_groups_of_one_image_have_the_quantile_of_images(values, level):
    found = np.array(values)
    assert quantile(found, level, np.arange(len(found))) == quantile(found, level)


def test_a_quantile_over_too_few_groups_is_infinite():
    scores = np.random.default_rng(0).random(18 * SIZE)
    assert quantile(scores, 0.95, indices(18)) == math.inf
    assert math.isfinite(quantile(scores, 0.95)) and math.isfinite(
        quantile(np.append(scores, [0.5] * SIZE), 0.95, indices(19))
    )


# --------------------------------------------------------------------------------------------------------- tests


def paired(seed: int, groups: int, effect: float) -> tuple[np.ndarray, np.ndarray]:
    """Two networks that are equally good on average, each better on its own groups; the second may be better by more."""
    rng = np.random.default_rng(seed)
    lean = 0.3 * rng.normal(size=groups)
    draws = rng.random(groups * SIZE)
    return draws < np.repeat(0.7 + lean, SIZE), draws < np.repeat(0.7 - lean + effect, SIZE)


def test_paired_tests_over_groups_keep_their_level_and_those_over_images_do_not():
    runs, index = 200, indices(15)
    found = [paired(seed, 15, 0) for seed in range(runs)]
    assert np.mean([mcnemar(*pair) < 0.05 for pair in found]) > 0.4
    assert np.mean([sign_flips(*pair, index) < 0.05 for pair in found]) < 0.085  # 5 % and three standard errors
    assert np.mean([sign_flips(*paired(seed, 15, 0.4), index) < 0.05 for seed in range(20)]) > 0.5


@pytest.mark.parametrize("metric", METRICS)
def test_differences_over_groups_are_wider(metric):
    index, targets = indices(15), np.zeros(15 * SIZE, int)
    predicted = np.array([1 - right for right in paired(1, 15, 0.05)])
    plain, grouped = (resample(predicted, targets, 2, metric, 300, index=i) for i in (None, index))
    assert np.array_equal(plain.values, grouped.values)
    one, other = (difference(sample[:1], sample[1:]) for sample in (plain, grouped))
    assert np.ptp(other.ci95) > 1.5 * np.ptp(one.ci95) and other.variance.freedom == 14
    assert other.p > one.p
    assert np.ptp(grouped[:1].ci95) > 1.5 * np.ptp(plain[:1].ci95)
    assert np.ptp(grouped.ci95) > np.ptp(plain.ci95)
    assert other.needed().seeds is None and (other.needed().images or 0) > (one.needed().images or 0)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=11))
def test_flips_of_groups_of_one_image_are_mcnemars_test(pairs):
    first, second = np.array(pairs).T
    assert sign_flips(first, second, np.arange(len(pairs))) == pytest.approx(mcnemar(first, second))


def test_flips_that_are_drawn_agree_with_flips_that_are_counted(monkeypatch):
    first, second = paired(4, 12, 0.2)
    counted = sign_flips(first, second, indices(12))
    monkeypatch.setattr("petriscope.metrics.statistics.MOST_EXACT", 0)
    assert sign_flips(first, second, indices(12)) == pytest.approx(counted, abs=0.02)


@pytest.mark.parametrize("of_masks", [False, True])
def test_one_group_has_no_test(of_masks):
    rng = np.random.default_rng(0)
    if of_masks:
        sample = resample_miou(rng.integers(1, 9, (2, 6, 2, 3)), np.zeros(6, int), 50)
    else:
        sample = resample(
            rng.integers(0, 2, (2, 60)), rng.integers(0, 2, 60), 2, "macro_f1", 50, index=np.zeros(60, int)
        )
    found = difference(sample[:1], sample[1:])
    assert sample.groups == 1 and found.p == 1
    assert np.isnan(found.ci95).all() and np.isnan(sample.ci95).all() and np.isnan(sample[:1].ci95).all()
    assert found.needed().images is None and found.needed().seeds is None
