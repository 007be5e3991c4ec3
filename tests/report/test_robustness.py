"""The section on the stress test."""

from __future__ import annotations

from typing import Any

import numpy as np

from petriscope.augment.corruptions import CORRUPTIONS
from petriscope.core.recipe import Recipe
from petriscope.core.results import Metric, Results, Robustness
from petriscope.data.imageset import ImageSet
from petriscope.report.robustness import headline, robustness_view
from petriscope.report.wording import NONE
from petriscope.tasks import find_task
from petriscope.trust.robustness import disturbed_images, stress_test

MIX = {"name": "corruption-mix", "held_out": ["bubble"]}
CLASSIFICATION, SEGMENTATION = find_task("classification"), find_task("segmentation")


def stressed(images: ImageSet, threshold: float = 130, recipe: Recipe | None = None) -> Robustness:
    """The stress test of a network that tells two classes apart by their brightness, per image or per pixel."""
    axes = (1, 2, 3) if images.targets.ndim == 1 else (3,)

    def predict(some: np.ndarray) -> np.ndarray:
        bright = some.mean(axes) > threshold
        return np.stack([~bright, bright], 1).astype(np.float32)

    found = stress_test(predict, images, recipe=recipe, resamples=100)
    assert found is not None
    return found


def labeled() -> ImageSet:
    rng = np.random.default_rng(0)
    targets = np.arange(40) % 2
    pixels = (60 + 140 * targets)[:, None, None, None] + rng.integers(-8, 9, (40, 12, 12, 3))
    return ImageSet(pixels.astype(np.uint8), targets, ("dark", "bright"), np.array([str(i) for i in range(40)]))


def masked(groups: bool = True) -> ImageSet:
    """Dark images with a bright half."""
    masks = np.zeros((12, 12, 16), np.uint8)
    masks[:, :, 8:] = 1
    pixels = (60 + 140 * masks)[..., None].astype(np.uint8)
    scenes = np.array([f"scene {i % 3}" for i in range(12)]) if groups else None
    return ImageSet(pixels, masks, ("ground", "rock"), np.arange(12).astype(str), scenes)


def gallery_of(images: ImageSet) -> dict[str, np.ndarray]:
    batch, names = disturbed_images(images, 0)
    return {"disturbed": batch, "disturbed_names": np.array(names)}


def changed(test: Robustness, **metrics: float) -> Robustness:
    values = {key: Metric(value=value, ci95=(value, value)) for key, value in metrics.items()}
    return test.model_copy(update={"metrics": {**test.metrics, **values}})


def view_of(test: Robustness, task: Any = CLASSIFICATION, gallery: dict[str, np.ndarray] | None = None) -> Any:
    return robustness_view(task, Results(stress={"val": test}), gallery or {})


def test_there_is_no_view_without_a_test():
    assert robustness_view(CLASSIFICATION, Results(), {}) is None
    assert robustness_view(CLASSIFICATION, Results(stress={"val": None}), {}) is None


def test_the_headline_names_clean_mean_and_worst():
    test = stressed(labeled())
    worst = min(corruption.value("mean") for corruption in test.corruptions.values())
    words = headline(test)
    assert words.startswith(
        f"clean 100.0 %, corrupted mean {100 * test.value('mean'):.1f} %, worst {100 * worst:.1f} %"
    )
    assert words.endswith(f"({test.worst.name.replace('-', ' ')})")


def test_every_corruption_has_a_row_with_its_images():
    view = view_of(stressed(labeled(), recipe=Recipe(augment=(MIX,))), gallery=gallery_of(labeled()))
    rows = [row for _, rows in view.groups for row in rows]
    assert len(rows) == len(CORRUPTIONS)
    assert all(len(row.cells) == 5 and len(row.images) == 3 for row in rows)
    marks = {row.name: row.mark for row in rows}
    assert marks["bubble"] == "held out"
    assert marks["motion blur"] == "trained against"
    assert marks["rotation"] == "not in training"
    assert sum(row.starred for row in rows) == 11


def test_cells_are_shaded_by_the_share_that_is_lost():
    rows = {row.name: row for _, rows in view_of(stressed(labeled())).groups for row in rows}
    assert [cell.lost for cell in rows["brightness down"].cells] == [0, 0, 0.5, 0.5, 0.5]
    assert "factor 0.34: 50.00 %" in rows["brightness down"].cells[4].tip


def test_several_at_once_are_told_where_they_were_tested():
    test = stressed(labeled())
    said = " ".join(view_of(test).notes)
    assert f"at once, of different kinds and up to severity 3, it is {100 * test.value('together'):.2f} %" in said
    older = test.model_copy(
        update={"metrics": {k: m for k, m in test.metrics.items() if "at_once" not in k and k != "together"}}
    )
    assert "at once" not in " ".join(view_of(older).notes)


def test_a_large_drop_is_an_alarm():
    test = stressed(labeled())
    assert "30.0 points of balanced accuracy" in view_of(changed(test, drop=0.3)).alarm
    assert not view_of(changed(test, drop=0.03)).alarm


def test_test_counts_more_than_val_and_images_may_be_missing():
    test = stressed(labeled())
    view = robustness_view(CLASSIFICATION, Results(stress={"val": test, "test": test}), {})
    assert view is not None and view.split == "test"
    assert view.plain is None
    assert all(not row.images for _, rows in view.groups for row in rows)


def test_masks_have_mean_iou_and_scenes():
    view = view_of(stressed(masked()), SEGMENTATION, gallery_of(masked()))
    assert view.metric == "mean IoU"
    notes = " ".join(view.notes)
    assert "Cells show mean IoU" in notes and "over 3 groups" in notes and "balanced accuracy" not in notes
    rows = {row.name: row for _, rows in view.groups for row in rows}
    assert len(rows) == len(CORRUPTIONS) - 2  # gray images
    # From severity 3 on no rock is found, and half of the pixels predicted as ground are ground.
    assert [cell.metric for cell in rows["brightness down"].cells] == ["100.0", "100.0", "25.0", "25.0", "25.0"]
    assert [cell.lost for cell in rows["brightness down"].cells] == [0, 0, 0.75, 0.75, 0.75]
    assert all(len(row.images) == 3 for row in rows.values())


def test_a_metric_that_is_not_defined_is_a_dash():
    test = stressed(masked(groups=False))
    rotation = test.corruptions["rotation"]
    series = {**rotation.series, "miou": (*rotation.series["miou"][:4], Metric(value=None, ci95=(None, None)))}
    corruptions = {**test.corruptions, "rotation": rotation.model_copy(update={"series": series})}
    view = view_of(test.model_copy(update={"corruptions": corruptions}), SEGMENTATION)
    cells = {row.name: row.cells for _, rows in view.groups for row in rows}
    assert cells["rotation"][4].metric == NONE and cells["rotation"][4].lost == 0


def test_results_that_do_not_name_their_metric_are_of_balanced_accuracy():
    test = stressed(labeled())
    plain = test.as_json()
    del plain["metric"]
    assert view_of(Robustness.model_validate(plain)).metric == "balanced accuracy"
