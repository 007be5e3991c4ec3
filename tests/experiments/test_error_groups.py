"""Groups and pairs against images made by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from petriscope.data.imageset import ImageSet
from petriscope.experiments.error_groups import (
    accuracy_by_group,
    cochran_mantel_haenszel,
    confused_pairs,
    foreground_share,
    measured,
)


def image_set(pixels, targets, classes=2):
    targets = np.asarray(targets, dtype=np.int64)
    return ImageSet(pixels, targets, tuple("abcdef"[:classes]), np.array([str(i) for i in range(len(targets))]))


def discs(radii, side=40, inside=60, outside=220, channels=3):
    """A dark disc on a light ground, one a radius."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    return (
        np.stack([np.where(y * y + x * x < r * r, inside, outside) for r in radii])
        .astype(np.uint8)[..., None]
        .repeat(channels, 3)
    )


def test_pairs_are_counted_and_their_examples_are_the_most_confident():
    targets = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    predicted = np.array([1, 1, 0, 2, 1, 0, 2, 1])
    confidence = np.array([0.6, 0.9, 0.9, 0.8, 0.7, 0.5, 0.9, 0.4])
    first, *rest = confused_pairs(targets, predicted, confidence)
    assert first == {"true": 0, "predicted": 1, "count": 2, "n": 4, "rows": [1, 0]}
    assert {(pair["true"], pair["predicted"], pair["count"]) for pair in rest} == {(0, 2, 1), (1, 0, 1), (2, 1, 1)}
    assert confused_pairs(targets, targets, confidence) == []


@pytest.mark.parametrize("channels", [1, 3])
def test_foreground_is_the_share_of_the_disc(channels):
    radii = np.array([4.0, 8, 12, 16])
    noise = np.random.default_rng(0).integers(-8, 8, (4, 40, 40, channels))
    images = (discs(radii, channels=channels) + noise).astype(np.uint8)
    np.testing.assert_allclose(foreground_share(images), np.pi * radii**2 / 1600, rtol=0.08)
    bright = discs(radii, inside=230, outside=30, channels=channels)
    np.testing.assert_allclose(foreground_share(bright), np.pi * radii**2 / 1600, rtol=0.08)


def test_nothing_is_in_front_of_an_even_image():
    even = np.full((2, 9, 9, 3), 200, dtype=np.uint8)
    even[1] += np.random.default_rng(0).integers(0, 6, (9, 9, 3)).astype(np.uint8)
    assert foreground_share(even).tolist() == [0, 0]


def test_brightness_and_color_are_means():
    pixels = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    pixels[1] = (255, 0, 0)
    brightness, _, color = measured(image_set(pixels, [0, 1]))
    np.testing.assert_allclose(brightness, [0, 0.2126 * 255])
    np.testing.assert_allclose(color, [[0, 0, 0], [255, 0, 0]])


def test_a_group_that_is_worse_stands_out_and_only_that():
    rng = np.random.default_rng(0)
    radii = rng.uniform(4, 16, 600)
    targets = rng.integers(0, 2, 600)
    small = radii < np.quantile(radii, 0.2)
    wrong = small & (rng.random(600) < 0.5)
    found = accuracy_by_group(image_set(discs(radii), targets), np.where(wrong, 1 - targets, targets))
    by_name = {attribute["name"]: attribute["groups"] for attribute in found}
    sizes = by_name["size of the foreground"]
    assert [group["name"] for group in sizes] == ["lowest", "low", "middle", "high", "highest"]
    assert sum(group["n"] for group in sizes) == 600
    worst = sizes[0]
    assert worst["n"] == pytest.approx(120, abs=25) and worst["accuracy"] < 0.65
    assert worst["p"] < 1e-6 and worst["p_within"] < 1e-6
    low, high = worst["ci95"]
    assert low < worst["accuracy"] < high
    assert worst["rest"] == pytest.approx(1.0, abs=0.02)
    assert "stain" in by_name


def test_a_group_of_a_difficult_class_stands_out_but_not_class_by_class():
    rng = np.random.default_rng(0)
    targets = np.arange(600) % 2  # class 1 is small, and wrong half of the time, whatever its size
    radii = np.where(targets == 1, rng.uniform(4, 6, 600), rng.uniform(10, 16, 600))
    wrong = (targets == 1) & (rng.random(600) < 0.5)
    found = accuracy_by_group(image_set(discs(radii), targets), np.where(wrong, 1 - targets, targets))
    smallest = next(a for a in found if a["name"] == "size of the foreground")["groups"][0]
    assert smallest["p"] < 1e-6
    assert smallest["p_within"] > 0.2


def test_stains_are_told_apart_by_their_color():
    rng = np.random.default_rng(0)
    shades = np.array([(230, 200, 210), (120, 60, 140), (60, 120, 120), (200, 120, 60)])
    which = np.arange(120) % 4
    pixels = np.clip(shades[which][:, None, None] + rng.integers(-5, 5, (120, 8, 8, 3)), 0, 255).astype(np.uint8)
    targets = rng.integers(0, 2, 120)
    groups = next(a for a in accuracy_by_group(image_set(pixels, targets), targets) if a["name"] == "stain")["groups"]
    assert [group["n"] for group in groups] == [30] * 4
    np.testing.assert_allclose(groups[0]["color"], shades[0], atol=3)  # the brightest first
    assert all(group["p"] == 1 for group in groups)


def test_gray_images_have_no_stain_and_few_images_no_groups():
    radii = np.linspace(4, 16, 90)
    targets = np.arange(90) % 2
    found = accuracy_by_group(image_set(discs(radii, channels=1), targets), targets)
    assert [a["name"] for a in found] == ["brightness", "size of the foreground"]
    assert [g["name"] for g in found[0]["groups"]] == ["low", "middle", "high"]
    assert accuracy_by_group(image_set(discs(radii[:20]), targets[:20]), targets[:20]) == []


def test_images_that_are_all_alike_make_no_groups():
    same = np.full((80, 6, 6, 3), 120, dtype=np.uint8)
    targets = np.arange(80) % 2
    assert accuracy_by_group(image_set(same, targets), targets) == []


def test_cochran_mantel_haenszel_by_hand():
    """Two strata of 2 x 2 tables; the statistic worked out from the formula."""
    tables = [((15, 5), (8, 12)), ((10, 10), (4, 16))]  # (right, wrong) of the group and of the rest
    right, member, strata = [], [], []
    for stratum, table in enumerate(tables):
        for inside, (hits, misses) in zip((True, False), table, strict=True):
            right += [True] * hits + [False] * misses
            member += [inside] * (hits + misses)
            strata += [stratum] * (hits + misses)
    excess = (15 - 20 * 23 / 40) + (10 - 20 * 14 / 40)
    variance = 20 * 20 * 23 * 17 / (40**2 * 39) + 20 * 20 * 14 * 26 / (40**2 * 39)
    from scipy.stats import chi2

    expected = chi2.sf((excess - 0.5) ** 2 / variance, 1)
    assert cochran_mantel_haenszel(*map(np.array, (right, member, strata))) == pytest.approx(expected)


@given(st.integers(0, 10_000))
def test_p_is_a_probability_and_does_not_depend_on_the_order(seed):
    rng = np.random.default_rng(seed)
    right, member, strata = rng.random(30) < 0.7, rng.random(30) < 0.5, rng.integers(0, 3, 30)
    p = cochran_mantel_haenszel(right, member, strata)
    order = rng.permutation(30)
    assert 0 <= p <= 1
    assert cochran_mantel_haenszel(right[order], member[order], strata[order]) == pytest.approx(p)
    assert cochran_mantel_haenszel(right, ~member, strata) == pytest.approx(p)
