"""Calibration errors: equal-mass bins, ECE and the Brier score."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from petriscope.metrics.calibration import calibration_errors, ece_equal_mass, equal_mass_bins
from petriscope.metrics.classification import calibration_error, calibration_error_if_calibrated


def test_equal_mass_bins_have_equal_counts():
    confidence = np.random.default_rng(0).random(100) ** 0.1
    correct = np.ones(100)
    assert equal_mass_bins(confidence, correct, 10)["count"].tolist() == [10] * 10


@given(st.lists(st.tuples(st.sampled_from([0.3, 0.5, 0.9, 0.99, 1.0]), st.booleans()), min_size=1, max_size=60))
def test_ties_share_a_bin_so_order_does_not_matter(pairs):
    confidence, correct = (np.array(column, float) for column in zip(*pairs, strict=True))
    forward = ece_equal_mass(confidence, correct)
    assert forward == pytest.approx(ece_equal_mass(confidence[::-1], correct[::-1]))
    assert equal_mass_bins(confidence, correct)["count"].sum() == len(pairs)
    # Grouped by distinct confidence, no error is smaller than over all images at once.
    assert forward >= abs(confidence.mean() - correct.mean()) - 1e-9


def test_ece_is_small_if_calibrated_and_large_if_overconfident():
    rng = np.random.default_rng(0)
    p = softmax(rng.normal(size=(20_000, 4)) * 2, axis=1)
    targets = (p.cumsum(1) < rng.random((20_000, 1))).sum(1).clip(max=3)
    sharpened = softmax(np.log(p) / 0.4, axis=1)
    honest, sure = calibration_errors(p, targets), calibration_errors(sharpened, targets)
    assert honest["ece_equal_mass"] < 0.015 < 0.1 < sure["ece_equal_mass"]
    assert honest["nll"] < sure["nll"] and honest["brier"] < sure["brier"]


def test_brier_by_hand():
    found = calibration_errors(np.array([[0.75, 0.25]]), np.array([1]))
    assert found["brier"] == pytest.approx(0.75**2 * 2)
    assert found["ece"] == pytest.approx(0.75)


def test_ece_is_in_its_band_if_calibrated_and_above_it_if_overconfident():
    rng = np.random.default_rng(1)
    honest, sure = [], []
    for _ in range(60):
        confidence = rng.uniform(0.4, 1, 150)
        low, high = calibration_error_if_calibrated(confidence, 200)
        assert 0 < low < high < 1
        right = rng.random(150) < confidence
        wrong_more_often = rng.random(150) < confidence - 0.25
        honest.append(low <= calibration_error(confidence, right) <= high)
        sure.append(calibration_error(confidence, wrong_more_often) > high)
    assert 0.85 < np.mean(honest) < 1 and np.mean(sure) > 0.95


@pytest.mark.parametrize("confidence", [[1.0], [0.5], [1.0] * 30, [1 / 3] * 30])
def test_the_band_of_ece_of_few_and_of_certain_predictions(confidence):
    low, high = calibration_error_if_calibrated(np.array(confidence), 100, chunk_bytes=500)
    assert 0 <= low <= high < 1 and (high == 0) == (confidence[0] == 1)
