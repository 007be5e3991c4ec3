"""Which images it would be most useful to label."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from petriscope.inference.labeling import most_useful


def probabilities(confidence, predicted, classes=3):
    p = np.repeat((1 - np.asarray(confidence, np.float32))[:, None] / (classes - 1), classes, axis=1)
    p[np.arange(len(p)), predicted] = confidence
    return p


@given(st.integers(1, 40), st.integers(0, 60), st.integers(0, 5), st.integers(0, 9))
def test_no_image_twice_and_the_same_for_a_seed(total, count, width, seed):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(4), total).astype(np.float32)
    features = rng.normal(size=(total, width)).astype(np.float32)
    rows = most_useful(p, features, count, seed)
    assert len(rows) == min(count, total) == len(set(rows.tolist()))
    assert len(rows) == 0 or ((rows >= 0).all() and (rows < total).all())
    np.testing.assert_array_equal(rows, most_useful(p, features, count, seed))


def test_no_two_certain_images_come_before_an_uncertain_one():
    p = probabilities([0.999999] * 50 + [0.5, 0.4, 0.45], [0] * 50 + [0, 1, 2])
    features = np.ones((53, 4), np.float32)
    assert set(most_useful(p, features, 4).tolist()) >= {50, 51, 52}, "certain images differ little from each other"


def test_features_without_a_number_hide_no_other_image():
    features = np.ones((20, 4), np.float32)
    features[0], features[1] = np.inf, np.nan
    p = probabilities([0.999] * 19 + [0.5], [0] * 20)
    assert most_useful(p, features, 1).tolist() == [19]


def test_copies_wait_until_all_others_are_chosen():
    features = np.repeat(np.eye(4, dtype=np.float32), 10, axis=0)
    p = probabilities([0.5] * 40, [0] * 40)
    first = most_useful(p, features, 4)
    assert sorted(row // 10 for row in first.tolist()) == [0, 1, 2, 3]
    assert len(set(most_useful(p, features, 40).tolist())) == 40


def test_distances_are_those_of_the_gradients():
    """The draws follow squared distances between the gradients themselves."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), 12).astype(np.float32)
    features = rng.normal(size=(12, 5)).astype(np.float32)
    gradients = p.astype(float)
    gradients[np.arange(12), p.argmax(1)] -= 1
    gradients = (gradients[:, :, None] * features[:, None, :]).reshape(12, -1)
    first = int(np.square(gradients).sum(1).argmax())
    chance = np.square(gradients - gradients[first]).sum(1)
    drawn = np.array([most_useful(p, features, 2, seed) for seed in range(3000)])
    assert (drawn[:, 0] == first).all()
    found = np.bincount(drawn[:, 1], minlength=12) / 3000
    np.testing.assert_allclose(found, chance / chance.sum(), atol=0.03)
