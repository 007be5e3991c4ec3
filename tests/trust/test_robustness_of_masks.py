"""The stress test of segmentation, with predictors whose errors are known."""

import json

import numpy as np
import pytest
import torch

from petriscope.augment.corruptions import CORRUPTIONS
from petriscope.core.masks import IGNORE
from petriscope.core.recipe import Recipe
from petriscope.data.imageset import ImageSet
from petriscope.metrics.segmentation import Tally, confusion_each, full_mask_metrics
from petriscope.tasks import segmentation
from petriscope.trust import robustness as stress
from petriscope.trust.robustness import stress_test

DARK, BRIGHT = 60, 200
MOVES = {name for name, corruption in CORRUPTIONS.items() if corruption.moves}
NAMES = ("background", "disc", "corner")


def discs(count=24, size=(24, 30), channels=1, groups=4, seed=0):
    """Bright discs on dark ground, an unlabeled row at the top of each mask."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    middles = rng.uniform(0.3, 0.7, (count, 2)) * size
    radii = rng.uniform(5, 8, count)
    inside = (y - middles[:, :1, None]) ** 2 + (x - middles[:, 1:, None]) ** 2 < radii[:, None, None] ** 2
    masks = inside.astype(np.uint8)
    masks[:, 0] = IGNORE
    pixels = np.repeat(np.where(inside, BRIGHT, DARK)[..., None], channels, 3).astype(np.uint8)
    scenes = None if groups is None else np.array([f"scene {i % groups}" for i in range(count)])
    return ImageSet(pixels, masks, NAMES[:2], np.arange(count).astype(str), scenes)


def by_brightness(images):
    """Predicts a disc where a pixel is brighter than 130."""
    bright = images.mean(3) > 130
    return np.stack([~bright, bright], 1).astype(np.float32)


def left_half(images):
    """Predicts a disc in the left half of every image."""
    out = np.zeros((len(images), 2, *images.shape[1:3]), np.float32)
    out[:, 1, :, : images.shape[2] // 2] = out[:, 0, :, images.shape[2] // 2 :] = 1
    return out


def test_masks_move_with_their_images(monkeypatch):
    test = stress_test(by_brightness, discs(), resamples=50).as_json()
    assert test["metric"] == "miou" and test["clean"] == test["clean_pixel_accuracy"] == 1
    for name in MOVES:
        # What is left is interpolation along the outlines.
        assert min(test["corruptions"][name]["miou"]) > 0.96, name
        assert min(test["corruptions"][name]["pixel_accuracy"]) > 0.99, name
    # If the masks stayed in place, mean IoU would fall.
    monkeypatch.setattr(stress, "corrupt_masks", lambda masks, *_: masks)
    stayed = stress_test(by_brightness, discs(), resamples=50).as_json()
    assert all(stayed["corruptions"][name]["miou"][4] < 0.8 for name in MOVES)


def test_darker_images_lose_the_discs():
    rows = stress_test(by_brightness, discs(), resamples=50).as_json()["corruptions"]
    # 200 x 0.57 and less lies below 130: from severity 3 on no disc is found
    assert rows["brightness-down"]["miou"] == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert rows["brightness-down"]["mean"] == pytest.approx(0.4)
    assert rows["brightness-up"]["miou"] == [1.0] * 5


def test_masks_stay_under_corruptions_that_do_not_move_pixels():
    test = stress_test(left_half, discs(), resamples=50).as_json()
    assert 0 < test["clean"] < 0.5
    for name, row in test["corruptions"].items():
        assert (row["miou"] == [test["clean"]] * 5) == (name not in MOVES), name
    assert [test["drop"], *test["drop_ci95"]] == pytest.approx([0, 0, 0], abs=1e-12)


@pytest.mark.parametrize("groups", [None, 5])
def test_the_clean_metrics_are_those_of_the_evaluation(groups):
    images = discs(groups=groups)
    # The bootstrap draws by place, so the images have to stand in the order of the test.
    ordered = images.subset(stress.stratified(images.strata, len(images)))
    predicted = torch.from_numpy(left_half(ordered.images).argmax(1))
    confusion = confusion_each(predicted, torch.from_numpy(ordered.targets), 2).numpy()
    tally = Tally(confusion, np.zeros(len(images)), np.zeros((len(images), 2, 4), np.int64))
    wanted = full_mask_metrics(tally, images.classes, ordered.groups, 200)
    test = stress_test(left_half, images, resamples=200).as_json()
    assert test["scenes"] == wanted["scenes"] == (groups or len(images))
    for key, name in (("clean", "miou"), ("clean_pixel_accuracy", "pixel_accuracy")):
        assert test[key] == pytest.approx(wanted[name])
        assert test[f"{key}_ci95"] == pytest.approx(wanted[f"{name}_ci95"])


def test_the_keys_are_those_of_classification_except_for_metric_names():
    recipe = Recipe(augment=("brightness",))
    masks = stress_test(by_brightness, discs(), recipe=recipe, resamples=50).as_json()
    labels = ImageSet(discs().pixels, np.arange(24) % 2, ("a", "b"), np.arange(24).astype(str))
    plain = stress_test(
        lambda images: np.eye(2)[np.zeros(len(images), int)], labels, recipe=recipe, resamples=50
    ).as_json()
    assert plain["metric"] == "balanced_accuracy"

    def renamed(keys):
        return {key.replace("balanced_accuracy", "miou").replace("accuracy", "pixel_accuracy") for key in keys}

    assert set(masks) == renamed(plain) | {"scenes", "groups"}
    assert set(masks["worst"]) == renamed(plain["worst"])
    for name, row in masks["corruptions"].items():
        assert set(row) == renamed(plain["corruptions"][name])
    assert {name for name, row in masks["corruptions"].items() if row["seen"]} == {"brightness-up", "brightness-down"}
    assert masks["relative_drop"] == pytest.approx(masks["drop"] / masks["clean"])


def test_results_do_not_depend_on_the_batch_size(monkeypatch):
    sizes = []

    def predict(images):
        sizes.append(len(images))
        return by_brightness(images)

    whole = stress_test(predict, discs(), resamples=50).as_json()
    assert set(sizes) == {24}
    sizes.clear()
    monkeypatch.setattr(segmentation, "PIXELS", 5 * 24 * 30)
    parts = stress_test(predict, discs(), resamples=50).as_json()
    assert set(sizes) == {5, 4}
    whole.pop("seconds"), parts.pop("seconds")
    assert whole == parts
    monkeypatch.setattr(segmentation, "PIXELS", 1)
    assert len(stress.predict_corrupted(predict, discs(), np.arange(3), "bubble", 2, 0)) == 3
    assert sizes[-3:] == [1, 1, 1]


def test_without_a_labeled_foreground_pixel_there_is_no_test():
    images = discs(4)
    for nothing in (IGNORE, 0):  # unlabeled, or background alone
        blank = ImageSet(images.pixels, np.full_like(images.targets, nothing), images.classes, images.ids)
        assert stress_test(by_brightness, blank, resamples=50) is None


def test_metrics_of_pixels_moved_out_of_the_image_are_undefined():
    """Shifts move the one labeled pixel out of the image: the metric is None, since JSON has no NaN."""
    masks = np.full((1, 20, 20), IGNORE, np.uint8)
    masks[0, 0, 0] = 1
    images = ImageSet(np.full((1, 20, 20, 1), BRIGHT, np.uint8), masks, NAMES[:2], np.array(["one"]))
    test = stress_test(by_brightness, images, resamples=50).as_json()
    json.dumps(test, allow_nan=False)
    assert test["clean"] == 1 and test["clean_ci95"] == [None, None]
    values = test["corruptions"]["rotation"]["miou"]
    assert values[4] is None and test["corruptions"]["rotation"]["miou_ci95"][4] == [None, None]
    assert test["worst"]["miou"] is not None


def test_images_are_chosen_by_their_rarest_class():
    images = discs(60)
    masks = np.where(images.targets == 1, 0, images.targets)  # background
    masks[7, 5, 5], masks[31:40, 4:6] = 2, 1
    images = ImageSet(images.pixels, masks, NAMES, images.ids)
    order = stress.stratified(images.strata, 6)
    assert 7 in order and sum(31 <= index < 40 for index in order) >= 1
    three = lambda some: np.stack([*by_brightness(some).swapaxes(0, 1), np.zeros(some.shape[:3])], 1)  # noqa: E731
    test = stress_test(three, images, count=6, resamples=50)
    assert (test.n, test.of, test.scenes) == (6, 60, 6)
