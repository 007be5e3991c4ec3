"""Predictions and images at the edges of what numbers can hold: no error, no warning, no value that JSON does not have."""

import json
import math

import numpy as np
import pytest

from petriscope.metrics.classification import full_metrics, quick_metrics
from petriscope.metrics.passes import judge_labels, judge_masks
from petriscope.metrics.segmentation import Tally, full_mask_metrics, mask_table
from petriscope.trust.ood import fit_detector
from petriscope.trust.state import Trust, fit_reference, trust_metrics
from petriscope.trust.temperature import FLATTEST, SHARPEST, scale

pytestmark = pytest.mark.filterwarnings("error")
SMALLEST = 1e-45  # of float32, subnormal
rng = np.random.default_rng(0)


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return (e / e.sum(1, keepdims=True)).astype(np.float32)


def one_hot(labels, classes=3):
    return np.eye(classes, dtype=np.float32)[labels]


LABELS = rng.integers(0, 3, 40)
NORMAL = rng.normal(size=(40, 3))
PREDICTIONS = {
    "ordinary": softmax(NORMAL),
    "huge logits": softmax(NORMAL * 1e4),
    "small logits": softmax(NORMAL * 1e-6),
    "all equal": np.full((40, 3), 1 / 3, np.float32),
    "certain and right": one_hot(LABELS),
    "certain and wrong": one_hot((LABELS + 1) % 3),
    "one class always": one_hot(np.zeros(40, int)),
    "ties": softmax(np.round(NORMAL)),
    "subnormal": np.maximum(one_hot(LABELS), np.float32(SMALLEST)),
    "float16": softmax(NORMAL).astype(np.float16).astype(np.float32),
    "float16, underflowed": softmax(NORMAL * 10).astype(np.float16).astype(np.float32),
    "sums a little off": softmax(NORMAL) * np.float32(1 + 3e-7),
}
TRUTHS = {
    "ordinary": LABELS,
    "one class": np.zeros(40, int),
    "a class left out": LABELS % 2,
    "one image": LABELS[:1],
    "two images": LABELS[:2],
}


def plain(value):
    """The value as strict JSON has it."""
    return json.loads(json.dumps(value, allow_nan=False))


@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("predicted", PREDICTIONS)
def test_metrics_of_labels(predicted, truth):
    targets = TRUTHS[truth]
    raw = PREDICTIONS[predicted][: len(targets)]
    assert all(map(math.isfinite, quick_metrics(raw, targets).values()))
    found = plain(full_metrics(raw, targets, ("a", "b", "c"), resamples=50))
    assert 0 <= found["accuracy"] <= 1 and found["nll"] >= 0
    reference = fit_reference(raw, targets, np.zeros(len(targets), np.float32))
    assert SHARPEST <= reference.temperature <= FLATTEST
    scaled = scale(raw, reference.temperature)
    assert np.isfinite(scaled).all() and scaled.max() <= 1
    plain(trust_metrics(raw, scaled, targets, None, ("a", "b", "c"), reference, reference.temperature).as_json())
    facts, arrays = Trust({"none": reference}).to_file()
    again = Trust.from_file(plain(facts), arrays, 3)
    assert again.temperature("none", "none") == reference.temperature


@pytest.mark.parametrize("temperature", [SHARPEST, FLATTEST, 1.0])
@pytest.mark.parametrize("predicted", PREDICTIONS)
def test_scaled_probabilities(predicted, temperature):
    raw = PREDICTIONS[predicted]
    scaled = scale(raw, temperature)
    assert np.isfinite(scaled).all() and np.allclose(scaled.sum(1), raw.sum(1) if temperature == 1 else 1, atol=1e-5)
    np.testing.assert_array_equal(scaled.max(1), np.take_along_axis(scaled, raw.argmax(1)[:, None], 1)[:, 0])


@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("hit", [True, False, "some"])
def test_passes_over_labels(truth, hit):
    targets = TRUTHS[truth]
    hits = rng.random((3, len(targets))) < 0.5 if hit == "some" else np.full((3, len(targets)), hit)
    found = judge_labels(hits, targets, 3, 50)
    assert np.isfinite(found.values).all()


TALLIES = {
    "ordinary": rng.integers(0, 50, (6, 3, 3)),
    "one image": rng.integers(0, 50, (1, 3, 3)),
    "nothing labeled": np.zeros((6, 3, 3), np.int64),
    "one image, nothing labeled": np.zeros((1, 3, 3), np.int64),
    "one class": np.stack([np.diag([9, 0, 0])] * 6),
    "some images without labels": np.concatenate([rng.integers(0, 50, (1, 3, 3)), np.zeros((5, 3, 3), np.int64)]),
}


@pytest.mark.parametrize("groups", [None, "one"])
@pytest.mark.parametrize("classes", [("a", "b", "c"), ("background", "b", "c")])
@pytest.mark.parametrize("name", TALLIES)
def test_metrics_of_masks(name, classes, groups):
    confusion = TALLIES[name]
    n = len(confusion)
    tally = Tally(confusion, np.zeros(n), np.zeros((n, 3, 4), np.int64))
    scenes = None if groups is None else np.array(["s"] * n)
    found = plain(full_mask_metrics(tally, classes, scenes, resamples=50))
    assert (found["pixel_accuracy"] is None) == (confusion.sum() == 0)
    mask_table(tally, classes, np.array([str(i) for i in range(n)]), scenes, "val")
    counts = np.stack([confusion.sum(2), confusion.sum(1), np.diagonal(confusion, axis1=1, axis2=2)], 2)[None]
    judge_masks(counts, np.arange(n) if groups is None else np.zeros(n, int), None, 50)


FEATURES = {
    "ordinary": rng.normal(size=(60, 5)),
    "all equal": np.ones((60, 5)),
    "all zero": np.zeros((60, 5)),
    "near zero": rng.normal(size=(60, 5)) * 1e-30,
    "huge": rng.normal(size=(60, 5)) * 1e30,
    "one unit alive": rng.normal(size=(60, 1)) * np.eye(5)[0],
    "one huge unit": rng.normal(size=(60, 5)) * [1, 1, 1, 1, 1e30],
    "float16, overflowed": np.where(rng.random((60, 5)) < 0.1, np.inf, rng.normal(size=(60, 5))),
    "not a number": np.full((60, 5), np.nan),
    "none": np.zeros((60, 0)),
}


@pytest.mark.parametrize("n", [1, 2, 60])
@pytest.mark.parametrize("pixels", ["ordinary", "all equal", "all zero"])
@pytest.mark.parametrize("features", FEATURES)
def test_the_detector_of_what_is_out_of_distribution(features, pixels, n):
    values = FEATURES[features][:n].astype(np.float32), FEATURES[pixels][:n].astype(np.float32)
    detector = fit_detector(values, np.arange(n) % 3, values)
    facts, arrays = Trust({}, detector).to_file()
    assert all(np.isfinite(array).all() for array in arrays.values())
    again = Trust.from_file(plain(facts), arrays, 3).detector
    for other in FEATURES.values():
        for seen in ((other, FEATURES["ordinary"]), (FEATURES["ordinary"], other)):
            if seen[0].shape[1] != FEATURES[features].shape[1] or not seen[1].shape[1]:
                continue
            scores = again.score(*(part.astype(np.float32) for part in seen))
            known = np.isfinite(seen[0]).all(1) & np.isfinite(seen[1]).all(1)
            assert scores.dtype == np.float32 and np.isfinite(scores[known]).all() and (scores[~known] == np.inf).all()
    wider = detector.widened(FEATURES["ordinary"][:, : FEATURES[features].shape[1]], FEATURES["huge"])
    assert math.isfinite(wider.limit) and math.isfinite(wider.pixels.limit) and math.isfinite(wider.features.limit)
