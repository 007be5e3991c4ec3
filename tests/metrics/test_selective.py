"""Selective prediction: thresholds that keep their guarantee, and the risk-coverage curve."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from petriscope.metrics.selective import _plan, aurc, fewest_groups, guaranteed_threshold, risk_coverage, uncertainty


def population(n: int, seed: int, scale: float = 0.08) -> tuple[np.ndarray, np.ndarray]:
    """Uncertainties, mostly small, and whether each prediction is right; the error rate is the uncertainty."""
    rng = np.random.default_rng(seed)
    uncertainties = np.minimum(rng.exponential(scale, n), 0.9) * (rng.random(n) < 0.4) + rng.exponential(1e-3, n)
    return uncertainties.astype(np.float32), rng.random(n) >= uncertainties


def test_uncertainty_differs_where_confidence_is_1_in_float32():
    p = np.array([[1, 1e-9, 1e-12], [1, 1e-12, 1e-12]], np.float32)
    assert uncertainty(p)[0] > uncertainty(p)[1] > 0
    np.testing.assert_allclose(uncertainty(np.array([[0.2, 0.5, 0.3]])), [0.5])
    assert uncertainty(np.array([[1.0]])).tolist() == [0]  # one class


@pytest.mark.parametrize("wanted", [0.01, 0.02])
def test_the_guarantee_holds_with_its_probability(wanted):
    """In at most 5 % of 300 draws of val, the true error above the threshold is larger than wanted."""
    many, right = population(400_000, 1)
    order = np.argsort(many)
    errors, ordered = np.cumsum(~right[order]), many[order]
    broken = found = 0
    for seed in range(300):
        threshold = guaranteed_threshold(*population(1500, seed + 10), wanted, 0.05)
        if threshold is not None:
            found += 1
            n = np.searchsorted(ordered, threshold.uncertainty, side="right")
            broken += errors[n - 1] / n > wanted
    assert found > 250
    # 5 % of 300 is 15; 27 or more come up once in a thousand times at 5 %.
    assert broken < 27


def test_more_errors_allowed_means_more_answers():
    uncertainties, right = population(3000, 3)
    found = [guaranteed_threshold(uncertainties, right, wanted) for wanted in (0.005, 0.01, 0.02, 0.1)]
    answered = [0 if threshold is None else threshold.answered for threshold in found]
    assert answered == sorted(answered)
    assert answered[-1] == 3000


def test_the_counts_of_a_threshold_are_right():
    uncertainties, right = population(3000, 4)
    threshold = guaranteed_threshold(uncertainties, right, 0.02)
    assert threshold is not None
    answered = uncertainties <= np.float32(threshold.uncertainty)
    assert (answered.sum(), (~right[answered]).sum()) == (threshold.answered, threshold.wrong)
    assert threshold.wrong / threshold.answered < 0.02


def test_too_few_images_or_too_many_errors_give_no_guarantee():
    assert guaranteed_threshold(np.zeros(50, np.float32), np.ones(50, bool), 0.01) is None
    assert guaranteed_threshold(np.zeros(5000, np.float32), np.zeros(5000, bool), 0.01) is None
    assert guaranteed_threshold(np.zeros(0, np.float32), np.zeros(0, bool), 0.01) is None


def test_all_right_answers_all_when_there_are_enough():
    uncertainties = np.linspace(0, 0.6, 5000).astype(np.float32)
    threshold = guaranteed_threshold(uncertainties, np.ones(5000, bool), 0.01)
    assert threshold is not None and threshold.answered == 5000


def test_images_of_equal_uncertainty_are_answered_together_or_not_at_all():
    uncertainties = np.full(4000, 0.2, np.float32)
    right = np.ones(4000, bool)
    right[:400] = False
    assert guaranteed_threshold(uncertainties, right, 0.05) is None
    assert guaranteed_threshold(uncertainties, right, 0.15).answered == 4000


@given(st.integers(0, 10_000), st.floats(1e-3, 0.5), st.floats(1e-3, 0.5))
def test_the_level_is_spent_once(n, max_error, delta):
    coverages, levels = zip(*_plan(n, max_error, delta), strict=True)
    assert sum(levels) == pytest.approx(delta)
    assert list(coverages) == sorted(coverages) and coverages[-1] == 1


def test_the_fewest_images_that_give_a_guarantee():
    """Without a mistake: log(0.05) / log(0.99) is 298.07."""

    def guaranteed(n: int) -> bool:
        return guaranteed_threshold(np.linspace(0, 0.1, n).astype(np.float32), np.ones(n, bool), 0.01) is not None

    assert not guaranteed(298) and all(map(guaranteed, range(299, 1500, 7)))


@pytest.mark.parametrize("power", [0.01, 1, 100])
def test_only_the_order_of_uncertainties_matters(power):
    uncertainties, right = population(2000, 5)
    plain, bent = (
        guaranteed_threshold(values, right, 0.02) for values in (uncertainties, uncertainties.astype(float) ** power)
    )
    assert plain is not None and bent is not None
    assert (plain.answered, plain.wrong) == (bent.answered, bent.wrong)


@pytest.mark.parametrize("wanted", [0, 1, -1, float("nan")])
def test_rates_outside_0_and_1_are_refused(wanted):
    with pytest.raises(ValueError, match="between 0 and 1"):
        guaranteed_threshold(np.zeros(3, np.float32), np.ones(3, bool), wanted)


@pytest.mark.parametrize("wanted", [1e-9, 1e-320, 5e-324])
def test_rates_near_0_are_guaranteed_by_no_number_of_images(wanted):
    assert guaranteed_threshold(np.zeros(300, np.float32), np.ones(300, bool), wanted) is None
    assert guaranteed_threshold(np.zeros(300, np.float32), np.ones(300, bool), wanted, index=np.arange(300)) is None
    assert fewest_groups(wanted) > 10**8


def test_the_curve_by_hand():
    coverage, risk = risk_coverage(np.array([0.1, 0.3, 0.2, 0.4]), np.array([True, False, True, True]))
    np.testing.assert_allclose(coverage, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(risk, [0, 0, 1 / 3, 1 / 4])
    area, excess = aurc(np.array([0.1, 0.3, 0.2, 0.4]), np.array([True, False, True, True]))
    assert area == pytest.approx((1 / 3 + 1 / 4) / 4)
    assert excess == pytest.approx(area - 1 / 16)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5]), st.booleans()), min_size=1, max_size=40))
def test_the_area_does_not_depend_on_the_order_of_ties(pairs):
    uncertainties, right = np.array([a for a, _ in pairs]), np.array([b for _, b in pairs])
    area, excess = aurc(uncertainties, right)
    assert (area, excess) == pytest.approx(aurc(uncertainties[::-1], right[::-1]))
    assert excess >= -1e-12 and 0 <= area <= 1


def test_mistakes_last_leave_no_excess():
    right = np.array([True] * 8 + [False] * 2)
    assert aurc(np.arange(10.0), right)[1] == pytest.approx(0)
    assert aurc(np.arange(5.0), np.zeros(5, bool)) == pytest.approx((1, 0))
    assert aurc(np.arange(5.0), np.ones(5, bool)) == pytest.approx((0, 0))


@pytest.mark.parametrize(
    ("n", "max_error", "fewest"), [(100, 0.05, 59), (50, 0.1, 29), (60, 0.05, 59), (400, 0.01, 299)]
)
def test_few_images_guarantee_what_as_many_right_answers_can(n, max_error, fewest):
    """59 answers without an error are needed for 5 %, and 29 for 10 %."""
    uncertainties = np.arange(n, dtype=np.float32) / n
    first = math.ceil(round(fewest / n / 0.01, 6)) * 0.01 * n  # thresholds answer whole percents of the images
    right = np.arange(n) < first
    found = guaranteed_threshold(uncertainties, right, max_error)
    assert found is not None and found.wrong == 0 and fewest <= found.answered <= first + 0.02 * n
    assert guaranteed_threshold(uncertainties, np.arange(n) < fewest - 1, max_error) is None


@pytest.mark.parametrize(("n", "max_error"), [(50, 0.1), (100, 0.05)])
def test_the_guarantee_of_few_images_holds_with_its_probability(n, max_error):
    uncertainties, right = population(200_000, 0, scale=0.3)
    order = np.argsort(uncertainties)
    sorted_uncertainties, errors = uncertainties[order], np.cumsum(~right[order])
    rng, failed, given = np.random.default_rng(1), 0, 0
    for _ in range(1000):
        rows = rng.integers(0, len(right), n)
        found = guaranteed_threshold(uncertainties[rows], right[rows], max_error)
        if found is not None:
            given += 1
            answered = np.searchsorted(sorted_uncertainties, found.uncertainty, side="right")
            failed += errors[answered - 1] / answered > max_error
    assert given > 200
    assert failed <= 50 + 3 * 7  # three standard deviations above 5 %
