"""Whether guarantees hold under shift, on cases that can be counted by hand."""

import numpy as np
import pytest

from petriscope.metrics.selective import uncertainty
from petriscope.trust.guarantees import LEVEL, MAX_ERROR, METHOD, Watch
from petriscope.trust.state import fit_reference

CLASSES = 3


def drawn(count, seed, sharpness=40.0):
    """Calibrated probabilities, and targets drawn from them."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(CLASSES, 1 / sharpness), count)
    targets = (p.cumsum(1) > rng.random((count, 1))).argmax(1)
    return p.astype(np.float32), targets


@pytest.fixture(scope="module")
def reference():
    return fit_reference(*drawn(4000, 0))


def watch_over(reference, passes, ood=None, batch=64):
    """A watch that was shown passes of (name, probabilities, targets), in batches."""
    watch = Watch(lambda images: (images, None if ood is None else ood[: len(images)]), reference, CLASSES)
    for name, p, targets in passes:
        for start in range(0, len(p), batch):
            assert watch.predict(p[start : start + batch]) is not None
            watch.keep(name, watch.judge(targets[start : start + batch]))
    return watch


def counted(reference, p, targets):
    """Answered, wrong and held, counted from their definitions."""
    threshold, limits = reference.threshold(MAX_ERROR), reference.limits(LEVEL, CLASSES, METHOD)
    answered = uncertainty(p) <= threshold.uncertainty
    wrong = p.argmax(1)[answered] != targets[answered]
    score = np.array([1 - row[k] for row, k in zip(p, targets, strict=True)])
    return answered.mean(), wrong.mean(), (score <= limits[targets] + 1e-6).mean()


def test_shares_agree_with_their_definitions(reference):
    plain, one, two = drawn(300, 1), drawn(300, 2, 2.0), drawn(300, 3, 1.0)
    both = [("bubble", *one), ("bubble", *two)]  # two severities
    metrics = watch_over(reference, [("identity", *plain), *both, ("jpeg", *one)]).metrics(
        "identity", ["bubble"], 300, 200
    )
    joined = tuple(np.concatenate(parts) for parts in zip(one, two, strict=True))
    for found, wanted in (
        (metrics.clean, plain),
        (metrics.disturbed, joined),
        (metrics.corruptions["jpeg"], one),
    ):
        expected = counted(reference, *wanted)
        assert [found.value(name) for name in ("answered", "wrong", "held")] == pytest.approx(expected, abs=1e-9)
        for name in ("answered", "held"):
            low, high = found.metric(name).ci95
            assert low <= found.value(name) <= high and high > low
    assert metrics.disturbed.value("answered") < metrics.clean.value("answered")
    assert set(metrics.corruptions) == {"bubble", "jpeg"}


def test_only_images_that_every_pass_saw_count(reference):
    p, targets = drawn(200, 4)
    metrics = watch_over(reference, [("identity", p, targets), ("jpeg", p[:50], targets[:50])]).metrics(
        "identity", ["jpeg"], 50, 100
    )
    assert metrics.clean == metrics.disturbed


def test_out_of_distribution_images_are_not_answered_but_have_a_prediction_set(reference):
    p, targets = drawn(64, 5)
    far = np.full(64, 2.0)
    metrics = watch_over(reference, [("identity", p, targets), ("jpeg", p, targets)], far).metrics(
        "identity", ["jpeg"], 64, 100
    )
    assert metrics.clean.value("answered") == 0
    assert metrics.clean.value("wrong") is None and metrics.clean.metric("wrong").ci95 is None
    assert metrics.clean.value("held") > 0.8


def test_nothing_is_answered_without_a_guarantee():
    p, targets = drawn(30, 6)
    reference = fit_reference(p, targets)
    assert reference.threshold(MAX_ERROR) is None
    metrics = watch_over(reference, [("identity", p, targets)]).metrics("identity", ["identity"], 30, 100)
    assert metrics.clean.value("answered") == 0
