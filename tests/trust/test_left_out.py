"""The test of left-out families, with predictors whose errors are known."""

import numpy as np
import pytest

from brightness import always_dark, by_mean, image_set
from petriscope.augment.corruptions import CORRUPTIONS
from petriscope.augment.families import FAMILIES, family_of
from petriscope.core.errors import RequestError
from petriscope.core.results import LeftOut
from petriscope.trust.left_out import left_out_test
from petriscope.trust.robustness import stress_test


@pytest.mark.parametrize("family", FAMILIES)
def test_alone_is_the_mean_of_the_family_s_corruptions_in_the_stress_test(family):
    images = image_set()
    found = left_out_test(by_mean(130), images, family, resamples=50)
    stress = stress_test(by_mean(130), images, count=None, resamples=50)
    own = {name: row.value("mean") for name, row in stress.corruptions.items() if family_of(name) == family}
    assert own.keys() <= found.metrics.keys()
    assert {name: found.value(name) for name in own} == own
    assert found.value("alone") == pytest.approx(np.mean(list(own.values())))
    assert found.value("clean") == 1
    assert (found.n, found.of, found.metric_name) == (60, 60, "balanced_accuracy")
    for metric in found.metrics.values():
        assert metric.ci95[0] <= metric.value <= metric.ci95[1]


def test_together_suffers_from_the_family_and_from_the_others():
    """A network that goes by brightness fails under tone, and now and then under what is drawn beside other families."""
    tone, noise = (left_out_test(by_mean(130), image_set(), f, resamples=50) for f in ("tone", "noise"))
    assert noise.value("alone") == 1
    assert tone.value("together") < noise.value("together") < 1
    two, three = noise.value("two_at_once"), noise.value("three_at_once")
    assert three < two
    assert noise.value("together") == pytest.approx((two + three) / 2)


def test_it_is_a_function_of_the_seed_and_can_be_read_again():
    first, again, other = (
        left_out_test(by_mean(130), image_set(), "tone", count=30, seed=seed, resamples=50) for seed in (0, 0, 1)
    )
    assert first == again != other
    assert (first.n, first.of) == (30, 60)
    read = LeftOut.model_validate(first.as_json())
    assert read.value("together") == first.value("together")
    assert read.metric("alone").ci95 == pytest.approx(first.metric("alone").ci95)


def test_batches_do_not_matter(monkeypatch):
    found = []
    for size in (200, 7):
        monkeypatch.setattr("petriscope.trust.robustness.BATCH", size)
        found.append(left_out_test(by_mean(130), image_set(), "geometry", resamples=50))
    assert found[0] == found[1]


def test_what_cannot_be_tested_is_refused():
    with pytest.raises(RequestError, match="no corruption of the family color"):
        left_out_test(always_dark, image_set(channels=1), "color")
    with pytest.raises(RequestError, match="at least one image"):
        left_out_test(always_dark, image_set(), "blur", count=0)
    assert not any(c.gray for c in CORRUPTIONS.values() if family_of(c.name) == "color")
