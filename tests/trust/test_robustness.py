"""The stress test with predictors whose errors are known."""

import numpy as np
import pytest

from brightness import always_dark, by_mean, image_set
from petriscope.augment.corruptions import CORRUPTIONS, SEVERITIES
from petriscope.core.errors import RequestError
from petriscope.core.recipe import Recipe, load_recipe
from petriscope.trust.robustness import (
    AT_ONCE,
    PARTS,
    TOGETHER,
    disturbed_images,
    stratified,
    stress_test,
    trained_against,
)


def test_a_predictor_by_brightness_fails_only_when_brightness_changes():
    test = stress_test(by_mean(130), image_set(), resamples=100).as_json()
    rows = test["corruptions"]
    assert test["clean"] == test["clean_accuracy"] == 1
    assert list(rows) == list(CORRUPTIONS)
    assert rows["defocus-blur"]["balanced_accuracy"] == [1.0] * 5
    # 200 x 0.57 and less lies below 130: bright images are called dark from severity 3 on, and half of all is right
    assert rows["brightness-down"]["balanced_accuracy"] == [1.0, 1.0, 0.5, 0.5, 0.5]
    assert rows["brightness-down"]["mean"] == pytest.approx(0.7)
    assert rows["brightness-up"]["balanced_accuracy"] == [1.0] * 5
    assert test["worst"]["name"] == min(rows, key=lambda name: rows[name]["mean"])


def test_means_are_over_the_named_corruptions():
    test = stress_test(by_mean(130), image_set(), resamples=100).as_json()
    rows = test["corruptions"]
    eleven = [row["mean"] for row in rows.values() if row["medmnist_c"]]
    assert len(eleven) == 11
    assert test["mean"] == pytest.approx(np.mean(eleven))
    assert test["mean_all"] == pytest.approx(np.mean([row["mean"] for row in rows.values()]))
    assert test["drop"] == pytest.approx(test["clean"] - test["mean"])
    assert test["relative_drop"] == pytest.approx(test["drop"] / test["clean"])
    for key in ("mean", "drop", "clean", "mean_all"):
        low, high = test[f"{key}_ci95"]
        assert low <= test[key] <= high


def test_a_constant_predictor_has_no_drop():
    test = stress_test(always_dark, image_set(), resamples=100).as_json()
    assert test["clean"] == test["mean"] == test["mean_all"] == 0.5
    assert test["drop"] == 0
    assert test["drop_ci95"] == [0, 0]


def test_balanced_accuracy_weighs_classes_equally():
    test = stress_test(always_dark, image_set(60, shares=(0.9, 0.1)), resamples=100).as_json()
    assert test["clean"] == 0.5
    assert test["clean_accuracy"] == pytest.approx(0.9)


def test_metrics_depend_on_the_seed_alone_and_a_subset_is_counted():
    images = image_set()
    first, again = (stress_test(by_mean(130), images, count=20, resamples=100).as_json() for _ in range(2))
    first.pop("seconds"), again.pop("seconds")
    assert first == again
    assert first["n"] == 20
    assert first["of"] == 60


def test_corruptions_of_color_are_skipped_for_gray_images():
    test = stress_test(by_mean(130), image_set(channels=1), resamples=100).as_json()
    assert set(CORRUPTIONS) - set(test["corruptions"]) == {"saturation", "color-cast"}


def test_every_image_is_seen_once_per_pass():
    seen = []

    def predict(images):
        seen.append(len(images))
        return always_dark(images)

    stress_test(predict, image_set(), count=50, resamples=100)
    assert sum(seen) == 50 * (1 + len(SEVERITIES) * len(CORRUPTIONS) + len(AT_ONCE) * PARTS)


def test_too_little_time_gives_fewer_images_or_nothing(monkeypatch):
    clock = iter(float(10 * i) for i in range(10_000))  # the clean pass takes 10 s: the whole would take 850
    monkeypatch.setattr("petriscope.trust.robustness.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("petriscope.trust.robustness._disturbing", lambda *args: 0.0)
    monkeypatch.setattr("petriscope.trust.robustness.TOO_LONG", np.inf)
    images = image_set(200)
    assert stress_test(by_mean(130), images, seconds=425, resamples=100).n == 100
    assert stress_test(by_mean(130), images, seconds=100, resamples=100) is None
    assert stress_test(by_mean(130), images, seconds=10_000, resamples=100).n == 200


def test_a_selection_keeps_the_classes_proportions():
    targets = np.repeat([0, 1, 2], [700, 299, 1])
    chosen = stratified(targets, 100)
    assert len(set(chosen.tolist())) == 100
    counts = np.bincount(targets[chosen])
    assert counts[2] == 1
    assert abs(counts[0] - 70) <= 1
    assert set(stratified(targets, 40).tolist()) < set(chosen.tolist())
    assert not np.array_equal(chosen, stratified(targets, 100, seed=1))


@pytest.mark.parametrize("count", [0, -3])
def test_no_images_is_an_error(count):
    with pytest.raises(RequestError, match="at least one"):
        stress_test(always_dark, image_set(), count=count)


def test_corruptions_that_a_recipe_trains_against():
    assert trained_against(None) == (set(), set())
    assert trained_against(Recipe(augment=("flip",))) == (set(), set())
    assert trained_against(Recipe(augment=("blur", "cutout"))) == ({"defocus-blur", "occlusion"}, set())
    for name in ("stain-jitter", "absorbance-jitter"):
        assert trained_against(Recipe(augment=(name,)))[0] == {"color-cast", "saturation"}
    mix = {"name": "corruption-mix", "held_out": ["bubble", "contrast-down"]}
    seen, held_out = trained_against(Recipe(augment=(mix,)))
    assert held_out == {"bubble", "contrast-down"}
    assert seen == {name for name in CORRUPTIONS if not CORRUPTIONS[name].moves} - held_out
    # contrast is trained against by another augmentation, so it is not held out
    assert trained_against(Recipe(augment=(mix, "contrast")))[1] == {"bubble"}


@pytest.mark.parametrize(("name", "third"), [("blood/robust", "pixelate"), ("blood96/robust", "translation")])
def test_the_robust_recipes_hold_out_three_corruptions(name, third):
    assert trained_against(load_recipe(name))[1] == {"defocus-blur", "jpeg", third}


def test_corruptions_trained_against_are_averaged_apart():
    recipe = Recipe(augment=("brightness",))
    test = stress_test(by_mean(130), image_set(), recipe=recipe, resamples=100).as_json()
    rows = test["corruptions"]
    assert {name for name, row in rows.items() if row["seen"]} == {"brightness-up", "brightness-down"}
    assert test["seen"] == pytest.approx(0.85)
    assert test["unseen"] == pytest.approx(np.mean([row["mean"] for row in rows.values() if not row["seen"]]))


def test_two_and_three_at_once_are_harder_and_change_no_other_metric():
    class Watching:
        def __init__(self):
            self.passes = []

        def judge(self, targets):
            return np.ones((len(targets), 3), dtype=bool)

        def keep(self, name, judged):
            assert judged.shape == (len(image_set()), 3)
            self.passes.append(name)

    watch = Watching()
    test = stress_test(by_mean(130), image_set(), resamples=100, watch=watch)
    assert watch.passes.count(TOGETHER) == len(AT_ONCE) * PARTS
    assert 0.5 < test.value("three_at_once") < test.value("two_at_once") < 1
    assert test.value("together") == pytest.approx((test.value("two_at_once") + test.value("three_at_once")) / 2)
    assert all(test.metric(key).ci95 is not None for key in (TOGETHER, *AT_ONCE.values()))
    assert test.value("mean_all") == pytest.approx(np.mean([row.value("mean") for row in test.corruptions.values()]))


def test_families_that_policies_leave_out_are_held_out():
    mix = {"name": "corruption-mix", "left_out": ["blur", "tone"]}
    seen, held_out = trained_against(Recipe(augment=(mix,)))
    blur = {"defocus-blur", "motion-blur"}
    tone = {"brightness-up", "brightness-down", "contrast-up", "contrast-down"}
    assert held_out == blur | tone
    assert not seen & held_out
    drawn = trained_against(Recipe(augment=({"name": "rand-augment", "left_out": ["tone"]},)))[0]
    assert drawn == {"saturation", "rotation", "translation"}


def test_one_image_under_all_corruptions():
    images = image_set()
    batch, names = disturbed_images(images, 7)
    assert batch.shape == (len(CORRUPTIONS), 4, 12, 12, 3)
    assert names == list(CORRUPTIONS)
    assert all(np.array_equal(strip[0], images.take([7])[0]) for strip in batch)
