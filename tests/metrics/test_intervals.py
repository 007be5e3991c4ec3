"""Intervals against scipy's."""

import numpy as np
import pytest
from scipy.stats import binomtest

from petriscope.metrics.intervals import bootstrap_weights, percentile95, wilson


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (0, 40), (97, 100), (3420, 3421)])
def test_wilson(hits, n):
    assert wilson(hits, n) == pytest.approx(tuple(binomtest(hits, n).proportion_ci(method="wilson")), abs=1e-12)


def test_no_images_say_nothing():
    assert wilson(0, 0) == (0.0, 1.0)
    assert np.isnan(percentile95(np.array([np.nan]))).all()


def test_the_bootstrap_draws_as_many_as_there_are_whatever_the_chunks():
    whole = np.concatenate(list(bootstrap_weights(7, 50, seed=3)))
    assert whole.shape == (50, 7) and (whole.sum(1) == 7).all()
    np.testing.assert_array_equal(whole, np.concatenate(list(bootstrap_weights(7, 50, seed=3, chunk_bytes=8 * 7 * 50))))
    assert len(list(bootstrap_weights(7, 50, chunk_bytes=8 * 7 * 10))) == 5


@pytest.mark.parametrize("index", [None, np.zeros(5, int)])
def test_a_single_image_or_group_has_no_resamples(index):
    assert list(bootstrap_weights(1 if index is None else 5, 10, index=index)) == []
