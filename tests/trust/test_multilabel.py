"""What is fitted on val for each label."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import f1_score

from petriscope.metrics.selective import uncertainty
from petriscope.trust.label_rules import ABSENT, PRESENT, answered_labels, doubts
from petriscope.trust.multilabel import (
    HALF,
    as_one_class,
    best_cutoff,
    fit_labels,
    fit_odds,
    log_odds,
    scale_labels,
)
from petriscope.trust.state import Trust


def drawn(n, seed=0, slope=2.0, offset=-1.5):
    """Probabilities whose log-odds are true once they are multiplied and moved so, and labels."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 2.5, (n, 2)) - np.array([0, 2])
    targets = (rng.random((n, 2)) < expit(true)).astype(np.uint8)
    return expit((true - offset) / slope).astype(np.float32), targets


def test_slope_and_offset_are_recovered():
    p, targets = drawn(20_000)
    slope, offset = fit_odds(p[:, 0], targets[:, 0] == 1)
    assert slope == pytest.approx(2.0, rel=0.08) and offset == pytest.approx(-1.5, abs=0.1)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_they_are_finite_whatever_the_network_says(p):
    for positive in (np.ones(50, bool), np.zeros(50, bool), np.arange(50) % 2 == 0):
        slope, offset = fit_odds(np.full(50, p, np.float32), positive)
        assert 0 < slope < 100 and abs(offset) <= 30
        assert np.isfinite(log_odds(np.array([0.0, 1.0], np.float32))).all()


@given(st.integers(0, 10**6), st.booleans())
def test_the_cutoff_has_the_highest_f1(seed, ties):
    rng = np.random.default_rng(seed)
    p = rng.random(40).astype(np.float32)
    p = np.round(p, 1) if ties else p
    positive = rng.random(40) < 0.3
    positive[:2] = True, False
    found = best_cutoff(p, positive)
    best = max(f1_score(positive, p >= at, zero_division=0) for at in p)
    assert f1_score(positive, p >= np.float32(found), zero_division=0) == pytest.approx(best)
    assert best_cutoff(p, np.zeros(40, bool)) == best_cutoff(p, np.ones(40, bool)) == HALF


def test_answers_keep_their_error_rate_on_new_images():
    """The share of wrong answers of each kind, over many draws of val: above what was asked for in few of them."""
    new, truth = drawn(50_000, seed=999)
    broken, given_ = 0, 0
    for seed in range(30):
        reference = fit_labels(*drawn(800, seed))
        limits = reference.limits(0.1)
        p = reference.scaled(new)
        answered = answered_labels(p, None, reference.cutoffs, limits)
        present = p >= reference.cutoffs
        for k in range(2):
            for answer in (ABSENT, PRESENT):
                these = answered[:, k] & (present[:, k] == answer)
                if these.any():
                    given_ += 1
                    broken += (truth[these, k] != answer).mean() > 0.1
    assert given_ > 30 and broken / given_ < 0.12


def test_doubt_is_the_probability_that_the_answer_is_wrong():
    np.testing.assert_allclose(doubts(np.array([0.2, 0.3, 0.9]), 0.3), [0.2, 0.7, 0.1])


def test_nothing_is_said_of_images_that_are_out_of_distribution():
    p, limits = np.full((2, 1), 0.9, np.float32), np.full((1, 2), np.inf)
    answered = answered_labels(p, np.array([0.5, 1.5]), np.array([0.5]), limits)
    assert answered.tolist() == [[True], [False]]


def test_a_model_file_keeps_what_was_fitted_and_refuses_what_does_not_fit():
    p, targets = drawn(60)
    groups = np.array([f"patient {i // 4}" for i in range(60)])
    trust = Trust(labels={"none": fit_labels(p, targets, None, groups)})
    facts, arrays = trust.to_file()
    again = Trust.from_file(facts, arrays, 2)
    for name, values in trust.labels["none"].arrays().items():
        np.testing.assert_array_equal(getattr(again.labels["none"], name), values)
    np.testing.assert_array_equal(again.scaled(p, "none", "none"), trust.scaled(p, "none", "none"))
    np.testing.assert_array_equal(again.scaled(p, "d4", "none"), trust.scaled(p, "none", "none"))
    for name, wrong in (("slopes", 0), ("target", 2), ("raw", 3), ("offsets", np.inf)):
        damaged = {**arrays, f"trust/labels/none/{name}": np.full_like(arrays[f"trust/labels/none/{name}"], wrong)}
        with pytest.raises(ValueError, match="inconsistent"):
            Trust.from_file(facts, damaged, 2)
    with pytest.raises(ValueError, match="inconsistent"):
        Trust.from_file(facts, arrays, 3)


def test_images_are_compared_by_their_most_probable_label_and_how_unsure_all_are():
    raw = np.array([[0.9, 0.2, 0.0], [0.1, 0.1, 0.5]], np.float32)
    told = as_one_class(raw)
    np.testing.assert_allclose(told.sum(1), 1, rtol=1e-6)
    assert told.argmax(1).tolist() == [0, 2]
    np.testing.assert_allclose(uncertainty(told), [0.1, 0.7 / 3], rtol=1e-5)


def test_scaling_keeps_the_order_of_images():
    p = np.sort(np.random.default_rng(0).random(200)).astype(np.float32)
    scaled = scale_labels(p[:, None], np.array([3.0]), np.array([-2.0]))[:, 0]
    assert (np.diff(scaled) >= 0).all()
