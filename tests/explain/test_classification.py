"""Explanations that a run of classification keeps: which images are shown, and how many are checked."""

import numpy as np
import pytest
from corner import corner_images, corner_predictor

from petriscope.data.imageset import ImageSet
from petriscope.explain import classification
from petriscope.explain.classification import explain_split


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
