"""Fitting a temperature, and scaling probabilities by it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from petriscope.metrics.classification import nll_each
from petriscope.trust.temperature import fit_temperature, scale


def drawn(n: int, classes: int, seed: int = 0, spread: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are calibrated by construction, and classes drawn from them."""
    rng = np.random.default_rng(seed)
    p = softmax(rng.normal(size=(n, classes)) * spread, axis=1)
    return p, (p.cumsum(1) < rng.random((n, 1))).sum(1).clip(max=classes - 1)


@pytest.mark.parametrize("true", [0.4, 1.0, 2.5])
@pytest.mark.parametrize("classes", [2, 8])
def test_a_known_temperature_is_recovered(true, classes):
    p, targets = drawn(8000, classes)
    distorted = softmax(np.log(p) * true, axis=1)
    assert fit_temperature(distorted, targets) == pytest.approx(true, rel=0.08)


def test_it_maximizes_the_likelihood():
    p, targets = drawn(500, 5)
    p = softmax(np.log(p) * 3, axis=1)
    best = fit_temperature(p, targets)
    losses = [nll_each(scale(p, best * factor), targets).mean() for factor in (0.9, 1.0, 1.1)]
    assert losses[1] < min(losses[0], losses[2])


@pytest.mark.parametrize("n", [1, 2, 1000])
@pytest.mark.parametrize("right", [True, False])
def test_all_right_or_all_wrong_leaves_it_finite(n, right):
    p = np.tile([0.9, 0.1], (n, 1))
    temperature = fit_temperature(p, np.zeros(n, int) if right else np.ones(n, int))
    assert 0.02 <= temperature <= 50
    assert temperature < 1 if right else temperature > 1


def test_nothing_to_fit_on_changes_nothing():
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, int)) == 1
    assert fit_temperature(np.ones((5, 1)), np.zeros(5, int)) == 1


def test_probabilities_of_0_and_1_are_handled():
    p = np.array([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0.5, 0.5, 0]], np.float32)
    temperature = fit_temperature(p, np.array([0, 1, 1, 0]))
    assert np.isfinite(scale(p, temperature)).all()
    assert np.isfinite(temperature)


@given(st.integers(0, 10_000), st.floats(0.05, 20))
def test_scaling_moves_no_image_and_can_be_undone(seed, temperature):
    p = drawn(20, 4, seed)[0].astype(np.float32)
    scaled = scale(p, temperature)
    assert (scaled.argmax(1) == p.argmax(1)).all()
    np.testing.assert_allclose(scaled.sum(1), 1, rtol=1e-5)
    if temperature >= 0.5:  # below, what is small falls out of float32
        np.testing.assert_allclose(scale(scaled, 1 / temperature), p, atol=2e-4)


def test_scaling_is_dividing_the_logits():
    logits = np.random.default_rng(0).normal(size=(30, 6)) * 4
    np.testing.assert_allclose(scale(softmax(logits, axis=1), 1.7), softmax(logits / 1.7, axis=1), rtol=1e-5)
