"""The section on disturbed images."""

import numpy as np

from petriscope.augment.corruptions import CORRUPTIONS
from petriscope.core.recipe import Recipe
from petriscope.data.imageset import ImageSet
from petriscope.report.robustness import headline, stress_view
from petriscope.report.wording import NONE
from petriscope.trust.robustness import disturbed_images, stress_test

MIX = {"name": "corruption-mix", "held_out": ["bubble"]}


def outcome(threshold=130, recipe=None):
    rng = np.random.default_rng(0)
    targets = np.arange(40) % 2
    pixels = (60 + 140 * targets)[:, None, None, None] + rng.integers(-8, 9, (40, 12, 12, 3))
    images = ImageSet(pixels.astype(np.uint8), targets, ("dark", "bright"), np.array([str(i) for i in range(40)]))

    def predict(some):
        bright = some.mean((1, 2, 3)) > threshold
        return np.stack([~bright, bright], 1).astype(np.float32)

    batch, names = disturbed_images(images, 0)
    gallery = {"disturbed": batch, "disturbed_names": np.array(names)}
    return stress_test(predict, images, recipe=recipe, resamples=100).as_dict(), gallery


def test_nothing_where_nothing_was_tested():
    assert stress_view({}, {}) is None
    assert stress_view({"stress": {"val": None}}, {}) is None


def test_the_headline_names_clean_mean_and_worst():
    test, _ = outcome()
    worst = min(test["corruptions"].values(), key=lambda row: row["mean"])["mean"]
    words = headline(test)
    assert words.startswith(f"clean 100.0 %, disturbed mean {100 * test['mean']:.1f} %, worst {100 * worst:.1f} %")
    assert words.endswith(f"({test['worst']['name'].replace('-', ' ')})")


def test_every_corruption_has_a_row_with_its_images():
    test, gallery = outcome(recipe=Recipe(augment=(MIX,)))
    view = stress_view({"stress": {"val": test}}, gallery)
    rows = [row for _, rows in view.groups for row in rows]
    assert len(rows) == len(CORRUPTIONS)
    assert all(len(row.cells) == 5 and len(row.images) == 3 for row in rows)
    marks = {row.name: row.mark for row in rows}
    assert marks["bubble"] == "held out"
    assert marks["motion blur"] == "trained against"
    assert marks["rotation"] == "new to it"
    assert sum(row.starred for row in rows) == 11


def test_the_more_is_lost_the_redder():
    test, gallery = outcome()
    view = stress_view({"stress": {"val": test}}, gallery)
    rows = {row.name: row for _, rows in view.groups for row in rows}
    assert [cell.lost for cell in rows["brightness down"].cells] == [0, 0, 0.5, 0.5, 0.5]
    assert "factor 0.34: 50.00 %" in rows["brightness down"].cells[4].tip


def test_alarm_only_where_much_is_lost():
    test, gallery = outcome()
    assert stress_view({"stress": {"val": {**test, "drop": 0.3}}}, gallery).alarm
    assert not stress_view({"stress": {"val": {**test, "drop": 0.03}}}, gallery).alarm


def test_test_counts_before_val_and_images_may_be_missing():
    test, _ = outcome()
    view = stress_view({"stress": {"val": test, "test": test}}, {})
    assert view.split == "test"
    assert view.plain is None
    assert all(not row.images for _, rows in view.groups for row in rows)


def of_masks(groups=True):
    """Dark images with a bright half, read by their brightness."""
    masks = np.zeros((12, 12, 16), np.uint8)
    masks[:, :, 8:] = 1
    pixels = (60 + 140 * masks)[..., None].astype(np.uint8)
    scenes = np.array([f"scene {i % 3}" for i in range(12)]) if groups else None
    images = ImageSet(pixels, masks, ("ground", "rock"), np.arange(12).astype(str), scenes)

    def predict(some):
        bright = some.mean(3) > 130
        return np.stack([~bright, bright], 1).astype(np.float32)

    batch, names = disturbed_images(images, 0)
    gallery = {"disturbed": batch, "disturbed_names": np.array(names)}
    return stress_test(predict, images, resamples=100).as_dict(), gallery


def test_of_masks_it_speaks_of_mean_iou_and_scenes():
    test, gallery = of_masks()
    view = stress_view({"stress": {"val": test}}, gallery)
    assert view.metric == "mean IoU"
    assert headline(test) == view.headline and view.headline.startswith("clean 100.0 %")
    said = " ".join([*view.notes, view.alarm])
    assert "Cells are mean IoU" in said and "over 3 scenes" in said and "Masks move" in said
    assert "balanced accuracy" not in said and "microscope" not in said
    rows = {row.name: row for _, rows in view.groups for row in rows}
    assert len(rows) == len(CORRUPTIONS) - 2  # gray
    # from severity 3 on no rock is found, and half of the pixels are the ground they are taken for
    assert [cell.metric for cell in rows["brightness down"].cells] == ["100.0", "100.0", "25.0", "25.0", "25.0"]
    assert [cell.lost for cell in rows["brightness down"].cells] == [0, 0, 0.75, 0.75, 0.75]
    assert all(len(row.images) == 3 for row in rows.values())
    alarm = stress_view({"stress": {"val": {**test, "drop": 0.3}}}, gallery).alarm
    assert "30.0 points of mean IoU" in alarm and "camera" in alarm


def test_a_metric_that_is_not_defined_is_a_dash():
    test, _ = of_masks(groups=False)
    row = test["corruptions"]["rotation"]
    row["miou"][4], row["miou_ci95"][4] = None, [None, None]
    view = stress_view({"stress": {"val": test}}, {})
    cells = {row.name: row.cells for _, rows in view.groups for row in rows}
    assert cells["rotation"][4].metric == NONE and cells["rotation"][4].lost == 0


def test_runs_from_before_masks_were_tested_are_shown():
    test, gallery = outcome()
    del test["metric"]
    assert stress_view({"stress": {"val": test}}, gallery).metric == "balanced accuracy"
