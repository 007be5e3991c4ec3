import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from petriscope.audit.outliers import find_outliers, nearest
from petriscope.core.errors import RequestError


def blobs(count=400, seed=0):
    """Two classes, the second spread three times as wide."""
    rng = np.random.default_rng(seed)
    targets = np.arange(count) % 2
    features = rng.normal(size=(count, 6)) * (1 + 2 * targets[:, None]) + 40 * targets[:, None]
    return features.astype(np.float32), targets


def test_far_images_are_flagged_and_no_others():
    features, targets = blobs()
    features[:3] += 300 * np.eye(6, dtype=np.float32)[:3]
    for labels in (None, targets):
        found = find_outliers(features, labels)
        assert np.flatnonzero(found.flagged).tolist() == [0, 1, 2]
        assert found.score.dtype == np.float32 and found.score[3:].max() < found.score[:3].min()


def test_a_clump_of_like_images_stands_out():
    features, targets = blobs()
    features[:8] = 200
    assert np.flatnonzero(find_outliers(features, targets).flagged).tolist() == list(range(8))


def test_a_class_that_varies_more_is_not_flagged_for_it():
    rng = np.random.default_rng(0)
    targets = np.repeat([0, 1], [900, 100])
    features = rng.normal(size=(1000, 6)) * np.where(targets, 20, 1)[:, None]
    assert find_outliers(features).flagged[targets == 1].mean() > 0.5
    assert not find_outliers(features, targets).flagged.any()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_share_flags_the_farthest(share):
    features, _ = blobs()
    found = find_outliers(features, share=share)
    assert found.flagged.sum() == round(share * 400)
    if found.flagged.any() and not found.flagged.all():
        assert found.score[found.flagged].min() >= found.score[~found.flagged].max()


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_is_a_share(share):
    with pytest.raises(RequestError, match="from 0 to 1"):
        find_outliers(blobs()[0], share=share)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 12, 60])
def test_few_or_equal_images_are_no_outliers(count):
    assert not find_outliers(np.ones((count, 4), np.float32), np.zeros(count, np.int64)).flagged.any()


@given(st.integers(0, 100))
def test_the_order_of_the_images_does_not_matter(seed):
    features, targets = blobs(120)
    order = np.random.default_rng(seed).permutation(120)
    one, other = find_outliers(features, targets), find_outliers(features[order], targets[order])
    assert np.allclose(one.score[order], other.score, atol=1e-3)


@given(st.integers(2, 40), st.integers(0, 50), st.integers(0, 100))
def test_nearest_are_the_nearest(count, k, seed):
    features = np.random.default_rng(seed).normal(size=(count, 5)).astype(np.float32)
    queries = np.arange(0, count, 3)
    found = nearest(features, queries, k)
    assert found.shape == (len(queries), min(k, count - 1)) and found.dtype == np.int64
    distances = np.linalg.norm(features[queries][:, None] - features, axis=2)
    distances[np.arange(len(queries)), queries] = np.inf
    reached = np.take_along_axis(distances, found, 1)
    assert np.allclose(reached, np.sort(distances, 1)[:, : found.shape[1]], atol=1e-4)


def test_equal_images_are_neighbors_of_each_other():
    found = nearest(np.ones((6, 3), np.float32), np.arange(6), 3)
    assert all(query not in row and len(set(row)) == 3 for query, row in enumerate(found.tolist()))
