"""Images drawn like val's raise no alarm, other mixes of classes neither, and other images do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.special import softmax

from petriscope.core.shift_results import Difference, ShiftTest
from petriscope.trust import two_sample
from petriscope.trust.ood import fit_detector
from petriscope.trust.shift import appearance_of, directions, fit_likeness, fit_looks
from petriscope.trust.two_sample import FEWEST, Likeness, Traits, compare
from petriscope.trust.verdict import UNCLAIMED, difference, verdict

K, D = 4, 12
CLASSES = ("a", "b", "c", "d")
MEANS = 2.5 * np.random.default_rng(9).normal(size=(K, D))


def drawn(n, seed, shares=(0.25,) * K, moved=0.0, groups=None, spread=0.0):
    """Features of n images, probabilities, classes and measures; ``moved``: in all features, in standard deviations."""
    rng = np.random.default_rng(seed)
    target = rng.choice(K, n, p=shares)
    features = MEANS[target] + rng.normal(size=(n, D)) + moved
    if groups is not None:
        features += spread * rng.normal(size=(groups.max() + 1, D))[groups]
    logits = -np.square(features[:, None] - MEANS).sum(2) / 4
    measures = rng.normal([200, 190, 210, 0.5, 0.4, 0.3], [5, 5, 5, 0.1, 0.1, 0.02], (n, 6)) + 0.1 * moved
    return features.astype(np.float32), softmax(logits, 1).astype(np.float32), target, measures.astype(np.float32)


def scores(detector, features):
    return detector.score(features, features[:, :3])


@pytest.fixture(scope="module")
def detector():
    train, val = (drawn(600, seed) for seed in (0, 1))
    return fit_detector((train[0], train[0][:, :3]), train[2], (val[0], val[0][:, :3]))


def likeness(detector, n=600, seed=1, groups=None, **more) -> Likeness:
    features, p, target, measures = drawn(n, seed, groups=groups, **more)
    return fit_likeness(p, features, scores(detector, features), measures, target, groups, detector)


def seen(detector, val, n, seed, **more) -> Traits:
    features, p, _, measures = drawn(n, seed, **more)
    return val.see(p, features, scores(detector, features), measures)


def alarms(detector, sets, n, **more) -> float:
    val = likeness(detector)
    return float(
        np.mean([compare(val, seen(detector, val, n, 100 + k, **more), CLASSES).withdrawn for k in range(sets)])
    )


def test_sets_like_val_raise_few_alarms(detector, monkeypatch):
    monkeypatch.setattr(two_sample, "DRAWS", 399)
    assert alarms(detector, 150, 50) <= 0.04  # 0.01 expected; 7 of 150 or more would happen once in 2,000 times


@pytest.mark.parametrize("shares", [(1, 0, 0, 0), (0, 0.8, 0.2, 0), (0.02, 0.02, 0.9, 0.06)])
def test_another_mix_of_classes_is_no_alarm_and_is_named(detector, monkeypatch, shares):
    monkeypatch.setattr(two_sample, "DRAWS", 399)
    assert alarms(detector, 40, 60, shares=shares) <= 0.05
    val = likeness(detector)
    found = compare(val, seen(detector, val, 60, 5, shares=shares), CLASSES)
    assert found.p_class_mix < 0.01
    assert found.class_mix[0].name == CLASSES[int(np.argmax(shares))]
    said = verdict(found)
    assert said[-1].startswith("note: another mix of classes than val:")


@pytest.mark.parametrize(("val", "new"), [(200, 400), (400, 400)])
def test_a_network_that_confuses_classes_raises_few_alarms(monkeypatch, val, new):
    """Most images are predicted as the first class, and the means of the classes differ in the features. What is known of the
    confusion then decides the result, and must be as uncertain for sets drawn from val as for new images."""
    monkeypatch.setattr(two_sample, "DRAWS", 199)

    def traits(n: int, seed: int) -> tuple[Traits, np.ndarray]:
        rng, target = np.random.default_rng(seed), np.arange(n) % K
        predicted = np.where(rng.random(n) < 0.5, target, 0)
        points = (MEANS[target, :3] + rng.normal(size=(n, 3))).astype(np.float32)
        ood, uncertainty = rng.random((2, n)).astype(np.float32)
        return Traits(points, ood, uncertainty, predicted, np.full((n, 6), np.nan, np.float32)), target

    alarms = 0
    for seed in range(40):
        known = Likeness(np.zeros((D, 3), np.float32), *traits(val, seed))
        alarms += compare(known, traits(new, 500 + seed)[0], CLASSES).withdrawn
    assert alarms <= 3  # 0.2 expected; 8 or more where the confusion of the sets themselves is used


def test_moved_features_are_found_in_50_images(detector, monkeypatch):
    monkeypatch.setattr(two_sample, "DRAWS", 399)
    assert alarms(detector, 20, 50, moved=0.8) >= 0.9
    assert alarms(detector, 20, 50, moved=0.8, shares=(0, 0, 1, 0)) >= 0.9


def test_a_test_is_repeatable(detector):
    val = likeness(detector)
    new = seen(detector, val, 40, 7)
    assert compare(val, new, CLASSES) == compare(val, new, CLASSES)


def test_the_order_of_images_does_not_matter(detector):
    val = likeness(detector)
    new = seen(detector, val, 40, 7, moved=0.3)
    first, second = (compare(val, new.take(order), CLASSES) for order in (np.arange(40), np.arange(40)[::-1]))
    assert first.p == second.p and first.differs == second.differs


def test_few_images_are_not_tested(detector):
    val = likeness(detector)
    few = compare(val, seen(detector, val, FEWEST - 1, 3, moved=9), CLASSES, of=FEWEST - 1)
    assert few.p is None and not few.withdrawn and "too few" in few.not_tested
    assert compare(val, seen(detector, val, FEWEST, 3, moved=9), CLASSES).withdrawn


def test_classes_that_val_has_few_images_of_are_not_tested(detector):
    few = likeness(detector, shares=(0.49, 0.5, 0, 0.01))
    found = compare(few, seen(detector, few, 60, 3, shares=(0, 0, 0, 1)), CLASSES)
    assert not found.withdrawn and "too few images of the classes" in found.not_tested


def test_groups_are_compared_as_wholes(detector, monkeypatch):
    """With features that differ between groups, one new group is like any other, though its images are not independent."""
    monkeypatch.setattr(two_sample, "DRAWS", 399)
    groups = np.arange(1500) % 150
    val = likeness(detector, 1500, groups=groups, spread=0.7)
    apart = likeness(detector, 1500, spread=0.7, groups=None)
    of_one = np.zeros(60, int)
    new = [seen(detector, val, 60, 300 + k, groups=of_one, spread=0.7) for k in range(40)]
    assert np.mean([compare(val, each, CLASSES).withdrawn for each in new]) <= 0.05
    assert np.mean([compare(apart, each, CLASSES).withdrawn for each in new]) >= 0.5
    assert compare(val, seen(detector, val, 60, 9, groups=of_one, spread=0.7, moved=4), CLASSES).withdrawn
    several = np.arange(60) % 20
    assert compare(
        val, seen(detector, val, 60, 9, groups=several, spread=0.7, moved=2), CLASSES, groups=several
    ).withdrawn
    few = likeness(detector, 300, groups=np.arange(300) % 12, spread=0.7)
    assert "val has too few groups (12)" in compare(few, new[0], CLASSES).not_tested


def test_without_features_and_scores_uncertainties_are_compared():
    _, p, target, measures = drawn(400, 1)
    val = fit_likeness(p, np.zeros((400, 0), np.float32), None, measures, target, None, None)
    other = drawn(60, 3, moved=1.5)
    found = compare(val, val.see(other[1], np.zeros((60, 0), np.float32), None, other[3]), CLASSES)
    assert found.p_features is None and found.p_ood is None and found.p_uncertainty < 0.01 and found.withdrawn


def test_what_differs_most_is_named_with_figures(detector):
    val = likeness(detector)
    new = seen(detector, val, 60, 3, moved=3)
    found = compare(val, new, CLASSES)
    assert found.withdrawn and [each.measure for each in found.differs[:2]] == ["sharpness", "stain"]
    said = verdict(found, "runs/x", "new images")
    assert said[0].startswith(
        "GUARANTEES WITHDRAWN: these images are not like those the guarantees were fitted on: sharpness 0.6"
    )
    assert "instead of 0.30" in said[0] and "Nothing is answered" in said[0]
    assert said[2].endswith("petriscope adapt runs/x --data 'new images'")
    assert "nothing is claimed" in verdict(found, then=UNCLAIMED)[0]


def test_measures_that_do_not_exist_are_not_named(detector):
    val = likeness(detector)
    new = seen(detector, val, 60, 3, moved=3)
    new.appearance[:, 3] = np.nan
    assert "stain" not in [each.measure for each in compare(val, new, CLASSES).differs]
    blank = replace(new, appearance=np.full_like(new.appearance, np.nan))
    found = compare(val, blank, CLASSES)
    assert found.differs == [] and "features" in verdict(found)[0]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_appearance_of_gray_and_of_blank_images(channels):
    found = appearance_of(torch.full((2, 16, 16, channels), 90, dtype=torch.uint8))
    assert found.shape == (2, channels + 3) and found.dtype == np.float32
    np.testing.assert_allclose(found[:, :channels], 90, atol=1e-3)
    assert np.isnan(found[:, channels]).all()


def test_the_directions_are_those_in_which_classes_agree(detector):
    project = directions(detector)
    centers = np.stack([drawn(20_000, 4)[0][drawn(20_000, 4)[2] == k].mean(0) for k in range(K)]) @ project
    assert np.abs(centers - centers.mean(0)).max() < 0.3
    assert project.shape == (D, D - K + 1)
    points = (drawn(5000, 5)[0] - MEANS[drawn(5000, 5)[2]]) @ project
    np.testing.assert_allclose(np.cov(points.T), np.eye(D - K + 1), atol=0.3)


@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_sums_by_place_are_those_of_a_sparse_matrix(sets, columns, places, seed):
    rng = np.random.default_rng(seed)
    values, place = rng.normal(size=(sets, columns)), rng.integers(0, places, columns)
    matrix = csr_array((np.ones(columns), (np.arange(columns), place)), (columns, places))
    assert (two_sample._sums(values, place, places) == values @ matrix).all()


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.lists(st.floats(-1e6, 1e6), max_size=30))
def test_ranks_are_shares_of_val(val, new):
    theirs, ours = two_sample._ranks(np.array(val), np.array(new))
    assert np.isclose(theirs.sum(), 0) and (np.abs(ours) <= 0.5).all()
    assert all((a - b) * (x - y) >= 0 for a, x in zip(ours, new, strict=True) for b, y in zip(theirs, val, strict=True))


def test_a_color_and_a_share_are_written_with_suitable_digits():
    assert difference(Difference(measure="stain", val=[0.52], here=[0.31], deviations=-2.14)) == (
        "stain 0.31 instead of 0.52 (2.1 standard deviations less)"
    )
    assert "230/180/9 instead of" in difference(
        Difference(measure="background color", val=[1, 2, 3], here=[230.2, 180, 9], deviations=9)
    )


def test_a_note_says_what_was_not_tested():
    (said,) = verdict(ShiftTest(n=3, of=3, val=40, level=0.01, not_tested="3 images are too few; 20 are needed"))
    assert "was not tested: 3 images are too few" in said and "out-of-distribution score alone" in said
    assert verdict(ShiftTest(n=30, of=30, val=40, level=0.01, p=0.5)) == []


def looks(rng, count, mix, apart=0.0):
    """Appearances of images of three classes that differ in size, and what a network says of them."""
    label = rng.choice(3, count, p=mix)
    appearance = rng.normal(0, 1, (count, 6)) * [9, 9, 9, 0.1, 0.05, 0.02] + [200, 190, 210, 0.5, 0.4, 0.4]
    appearance[:, 4] += 0.1 * label
    appearance[:, 5] += 0.02 * apart
    appearance[rng.random(count) < 0.05, 3] = np.nan
    said = np.where(rng.random(count) < 0.8, label, rng.integers(0, 3, count))
    return np.eye(3, dtype=np.float32)[said], appearance.astype(np.float32), label


def test_what_a_network_learned_from_is_compared_by_its_appearance_alone():
    rng, names = np.random.default_rng(0), ("a", "b", "c")
    raw, appearance, label = looks(rng, 100, [0.5, 0.3, 0.2])
    kept = fit_looks(raw, appearance, label, None)
    again = Likeness.of(dict(kept.arrays()))
    assert again.sound(3) and not replace(again, center=np.full(6, np.nan, np.float32)).sound(3)

    def seen(mix, apart=0.0):
        raw, appearance, _ = looks(rng, 50, mix, apart)
        anything = rng.random((50, 9), dtype=np.float32)  # features and scores of a network do not matter
        return compare(again, again.see(raw, anything, anything[:, 0], appearance), names)

    same = [seen(mix) for mix in ([0.5, 0.3, 0.2], [0.2, 0.3, 0.5]) for _ in range(40)]
    assert sum(each.withdrawn for each in same) <= 3
    assert all(each.p_features is each.p_ood is each.p_uncertainty is None for each in same)
    assert all(seen([0.5, 0.3, 0.2], apart=1.5).withdrawn for _ in range(10))
