"""The section on disturbed pictures."""

import numpy as np

from petriscope.augment.corruptions import CORRUPTIONS
from petriscope.data.imageset import ImageSet
from petriscope.evaluation.stress import disturbed_pictures, stress_test
from petriscope.recipe import Recipe
from petriscope.report.stress import headline, stress_view

MIX = {"name": "corruption-mix", "held_out": ["bubble"]}


def outcome(threshold=130, recipe=None):
    rng = np.random.default_rng(0)
    targets = np.arange(40) % 2
    pixels = (60 + 140 * targets)[:, None, None, None] + rng.integers(-8, 9, (40, 12, 12, 3))
    images = ImageSet(pixels.astype(np.uint8), targets, ("dark", "bright"), np.array([str(i) for i in range(40)]))

    def predict(some):
        bright = some.mean((1, 2, 3)) > threshold
        return np.stack([~bright, bright], 1).astype(np.float32)

    pictures, names = disturbed_pictures(images, 0)
    gallery = {"disturbed": pictures, "disturbed_names": np.array(names)}
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


def test_every_corruption_has_a_row_with_its_pictures():
    test, gallery = outcome(recipe=Recipe(augment=(MIX,)))
    view = stress_view({"stress": {"val": test}}, gallery)
    rows = [row for _, rows in view.groups for row in rows]
    assert len(rows) == len(CORRUPTIONS)
    assert all(len(row.cells) == 5 and len(row.pictures) == 3 for row in rows)
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


def test_test_counts_before_val_and_pictures_may_be_missing():
    test, _ = outcome()
    view = stress_view({"stress": {"val": test, "test": test}}, {})
    assert view.split == "test"
    assert view.plain is None
    assert all(not row.pictures for _, rows in view.groups for row in rows)
