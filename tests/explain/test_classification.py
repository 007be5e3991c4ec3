"""Explanations that a run of classification keeps: which images are shown, and how many are checked."""

import numpy as np
import pytest
from corner import corner_images, corner_predictor

from petriscope.data.imageset import ImageSet
from petriscope.explain import classification, methods_for
from petriscope.explain.checks import forward_passes
from petriscope.explain.classification import NO_TIME, explain_split


def image_set(count=40):
    ids = np.array([f"val/{i}" for i in range(count)])
    return ImageSet(corner_images(count), np.arange(count) % 2, ("a", "b"), ids)


def predictions(images):
    predicted = np.ones(len(images), dtype=np.int64)
    predicted[:10] = images.targets[:10]  # some of class 0 are right too
    return predicted, np.linspace(0.5, 1, len(images))


def test_correct_images_of_every_class_come_first_then_confident_mistakes():
    images = image_set()
    predicted, confidence = predictions(images)
    arrays, facts = explain_split(corner_predictor(), images, predicted, confidence)
    rows = arrays["rows"]
    right = predicted[rows] == images.targets[rows]
    assert right.tolist() == [True] * 12 + [False] * 12
    assert images.targets[rows[:4]].tolist() == [0, 1, 0, 1]
    assert (np.diff(confidence[rows[12:]]) < 0).all()
    assert arrays["maps"].shape == (24, 2, 16, 16) and arrays["maps"].dtype == np.uint8
    np.testing.assert_array_equal(arrays["maps"][:12, 0], arrays["maps"][:12, 1])  # the true class is the predicted one
    assert facts["method"] == "hires-cam" and facts["shown"] == 24
    assert facts["check"]["n"] == 40 and not facts["left_out"]


def test_methods_are_left_out_where_they_cost_too_much(monkeypatch):
    images = image_set()
    monkeypatch.setattr(classification, "multiply_adds", lambda model, shape: 10**9)
    _, facts = explain_split(corner_predictor(), images, *predictions(images))
    assert facts["check"] is None and "too costly" in facts["reason"]
    monkeypatch.setattr(classification, "BUDGET", 2e12)
    _, facts = explain_split(corner_predictor(), images, *predictions(images))
    assert list(facts["check"]["methods"]) == ["hires-cam", "grad-cam"][: len(facts["check"]["methods"])]
    assert facts["left_out"][-1] == "occlusion"
    assert facts["check"]["n"] >= classification.FEWEST


def test_few_images_are_shown_and_not_checked():
    images = image_set(5)
    arrays, facts = explain_split(corner_predictor(), images, *predictions(images))
    assert len(arrays["rows"]) == 5
    assert facts["check"] is None and "fewer than 16" in facts["reason"]


def test_a_network_that_cannot_be_explained_does_not_stop_the_evaluation(monkeypatch):
    def fails(*args):
        raise RuntimeError("no such layer")

    images = image_set(20)
    monkeypatch.setattr(classification, "explain", fails)
    arrays, facts = explain_split(corner_predictor(), images, *predictions(images))
    assert arrays == {}
    assert facts["method"] is None and "no such layer" in facts["reason"]


@pytest.mark.parametrize("all_right", [True, False])
def test_all_right_and_all_wrong(all_right):
    images = image_set(20)
    predicted = images.targets if all_right else 1 - images.targets
    arrays, facts = explain_split(corner_predictor(), images, predicted, np.full(20, 0.9))
    assert len(arrays["rows"]) == 12
    assert facts["shown"] == 12


def test_what_there_is_no_time_for_is_left_out(monkeypatch):
    images = image_set()
    arrays, facts = explain_split(corner_predictor(), images, *predictions(images), left=lambda: 0.0)
    assert arrays == {} and facts["method"] is None and facts["reason"] == NO_TIME
    arrays, facts = explain_split(corner_predictor(), images, *predictions(images), left=lambda: 1e-9)
    assert len(arrays["rows"]) == 24 and facts["check"] is None and facts["reason"] == NO_TIME
    remaining = iter(
        [1e9, 1e9, 1e9, 1e9]
    )  # before the maps, after them, and before two methods; then the machine stalls
    arrays, facts = explain_split(corner_predictor(), images, *predictions(images), left=lambda: next(remaining, 0.0))
    assert len(arrays["rows"]) == 24 and facts["check"] is None and facts["reason"] == NO_TIME


def test_checks_are_of_as_few_images_and_methods_as_there_is_time_for(monkeypatch):
    images, ticks = image_set(), iter([0.0, 1.0] * 3)
    monkeypatch.setattr(
        classification.time, "monotonic", lambda: next(ticks)
    )  # maps of 24 images, twice, take a second
    monkeypatch.setattr(classification, "check", lambda *args, **options: args)
    several = forward_passes(methods_for(corner_predictor()))
    for count, wanted in ((20.5, 20), (1000.0, 40)):
        left = count * several / (6 * 24)
        _, facts = explain_split(corner_predictor(), images, *predictions(images), left=lambda left=left: left)
        assert len(facts["check"][1]) == wanted and not facts["left_out"]
    left = 16 * several / (6 * 24) / 2
    _, facts = explain_split(corner_predictor(), images, *predictions(images), left=lambda: left)
    assert facts["left_out"] and facts["check"][2], "some methods are left out"
