"""Self-training: which images a network learns from that it labeled itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from petriscope.training.self_training import pseudo_labels


@given(
    arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(2, 5)), elements=st.floats(0, 1, width=32)),
    st.floats(0, 1),
)
def test_the_surest_images_of_each_predicted_class_are_taken(p, share):
    rows, labels = pseudo_labels(p, share)
    assert (np.diff(rows) > 0).all() and (labels == p.argmax(1)).all()
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        taken = np.intersect1d(members, rows)
        assert len(taken) == max(1, round(share * len(members)))
        left = np.setdiff1d(members, taken)
        assert not len(left) or p[left].max(1).max() <= p[taken].max(1).min()


@pytest.mark.parametrize(("share", "expected"), [(0.5, [0, 2, 3]), (1.0, [0, 1, 2, 3, 4])])
def test_by_hand(share, expected):
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.95, 0.05], [0.7, 0.3]])
    rows, labels = pseudo_labels(p, share)
    assert rows.tolist() == expected and labels.tolist() == [0, 0, 1, 0, 0]
