"""Cutoffs between values: the same values are accepted, and none of them is at the edge."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from petriscope.metrics.conformal import METHODS, quantiles, sets, true_scores
from petriscope.metrics.cutoffs import REACH, SMALLEST, between, raised
from petriscope.metrics.selective import guaranteed_threshold

FLOATS = {kind: st.floats(0, 1, width=8 * np.dtype(kind).itemsize) for kind in (np.float32, np.float64)}
VALUES = st.sampled_from((np.float32, np.float64)).flatmap(
    lambda kind: arrays(kind, st.integers(1, 40), elements=FLOATS[kind])
)
COARSE = arrays(np.float32, st.integers(2, 40), elements=st.integers(-20, 20).map(lambda i: i / 32))  # with ties


@given(VALUES, st.data(), st.sampled_from((between, raised)))
def test_the_same_values_are_accepted(values, data, move):
    cutoff = float(data.draw(st.sampled_from(list(values))))
    found = move(values, cutoff)
    assert type(found) is float and found >= cutoff
    np.testing.assert_array_equal(values <= found, values <= cutoff)
    np.testing.assert_array_equal(values.astype(np.float64) <= found, values <= cutoff)  # in either precision


@given(COARSE, st.data())
def test_the_margin_is_half_the_gap_on_both_sides(values, data):
    low = float(data.draw(st.sampled_from(list(values))))
    assume((values > low).any())
    high = float(values[values > low].min())
    for cutoff in (low, float(np.nextafter(np.float32(high), np.float32(-1)))):
        found = between(values, cutoff)
        assert found - low == high - found == (high - low) / 2


@given(COARSE, st.data())
def test_changes_smaller_than_the_margin_flip_nothing(values, data):
    cutoff = between(values, float(data.draw(st.sampled_from(list(values)))))
    margin = np.abs(values - cutoff).min()
    assume(margin > 0)
    noise = data.draw(arrays(np.float64, len(values), elements=st.floats(-0.99, 0.99))) * margin
    np.testing.assert_array_equal(values + noise <= cutoff, values <= cutoff)


def test_neighboring_numbers_have_nothing_between_them():
    for start in (np.float32(0.3), np.nextafter(np.float32(0.3), np.float32(1))):  # rounds to the lower, to the upper
        values = np.array([start, np.nextafter(start, np.float32(1))])
        assert between(values, float(start)) == start
    assert between(values.astype(np.float64), float(values[0])) == values.astype(np.float64).mean()


@pytest.mark.parametrize("values", [[], [0.2, 0.4], [0.7, 0.9], [0.2, math.inf]])
def test_without_a_value_on_both_sides_a_cutoff_stays(values):
    assert between(np.array(values), 0.5) == 0.5


def test_a_raised_cutoff_reaches_no_further_than_a_hundredth():
    step = REACH / 2
    values = np.array([0.1, 0.5, 0.504, 1.0, 40.0])
    assert raised(values, 0.5) == pytest.approx(0.502)  # half the gap
    assert raised(values, 1.0) == pytest.approx(1 + step)  # not 20.5
    assert raised(values, 40.0) == pytest.approx(40 * (1 + step))  # the last
    assert raised(values, 40.0, bound=40.1) == pytest.approx(40.05) and raised(values, 40.0, bound=40) == 40
    assert raised(np.zeros(3), 0.0) == pytest.approx(step * SMALLEST) and raised(-values, -1.0) > -1
    assert raised(values, math.inf) == math.inf
    largest = np.array([np.finfo(np.float32).max])
    assert raised(largest, float(largest[0])) == largest[0]


# ------------------------------------------------------------------------------------------------- what is fitted on val


def val(seed: int, n: int = 900) -> tuple[np.ndarray, np.ndarray]:
    """Uncertainties over several powers of ten, float32, and whether the prediction is right."""
    rng = np.random.default_rng(seed)
    uncertainties = (10 ** rng.uniform(-7, -0.3, n)).astype(np.float32)
    return uncertainties, rng.random(n) >= uncertainties


@pytest.mark.parametrize("how", ["images", "shares", "groups"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_threshold_is_between_two_images_of_val(how, seed):
    uncertainties, right = val(seed)
    index = np.arange(900) // 3 if how == "groups" else None
    accept = np.full(900, 0.7) if how == "shares" else None
    found = guaranteed_threshold(uncertainties, right, 0.02, index=index, accept=accept)
    assert found is not None and found.uncertainty < 0.5
    answered = uncertainties <= found.uncertainty
    low, high = float(uncertainties[answered].max()), float(uncertainties[~answered].min())
    assert found.uncertainty == pytest.approx((low + high) / 2, rel=1e-6)
    if how != "shares":  # those are counted on the images drawn
        assert (found.answered, found.wrong) == (answered.sum(), (answered & ~right).sum())
    noise = 1 + (high - low) / high * np.random.default_rng(1).uniform(-0.4, 0.4, 900)
    np.testing.assert_array_equal(uncertainties * noise <= found.uncertainty, answered)


def test_where_all_images_are_answered_so_are_all_new_ones():
    uncertainties, _ = val(0)
    assert guaranteed_threshold(uncertainties, np.ones(900, bool), 0.01).uncertainty == 1


@pytest.mark.parametrize("method", METHODS)
def test_prediction_sets_of_val_do_not_change_with_rounding_errors(method):
    """Scores are changed, not probabilities: the random share in APS and RAPS depends on the last bit of these."""
    rng = np.random.default_rng(0)
    p, targets = rng.dirichlet([0.3] * 3, 400).astype(np.float32), rng.integers(0, 3, 400)
    own = true_scores(p, targets, method)
    limits = quantiles(own, targets, 3, 0.9, method)
    covered = own <= limits[targets]
    assert 0.9 <= covered.mean() < 0.92
    margin = np.abs(own - limits[targets]).min()
    assert margin > 2e-6
    for sign in (-1, 1):
        np.testing.assert_array_equal(own + sign * 2e-6 <= limits[targets], covered)
    if method in ("lac", "class"):
        np.testing.assert_array_equal(sets(p, limits, method)[np.arange(400), targets], covered)
