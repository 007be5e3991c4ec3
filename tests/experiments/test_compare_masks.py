"""Runs on masks against one another."""

import json

import numpy as np
import pandas as pd
import pytest

from petriscope.core.errors import RequestError
from petriscope.core.recipe import Recipe
from petriscope.core.results import Evaluation, TrainingSummary
from petriscope.data.imageset import Dataset, ImageSet
from petriscope.experiments.compare import compare
from petriscope.metrics.segmentation import Tally
from petriscope.report.compare import as_text, write_comparison
from petriscope.run.folder import create_run

CLASSES = ("background", "sand", "rock")


def make_run(folder, seed, right, masks=0):
    """A finished run whose predictions are right in that share of the pixels, over 12 images in 6 scenes."""
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(masks).integers(5, 50, (12, 3))
    confusion = np.zeros((12, 3, 3), dtype=np.int64)
    for k in range(3):
        hits = rng.binomial(truth[:, k], right)
        confusion[:, k, k], confusion[:, k, (k + 1) % 3] = hits, truth[:, k] - hits
    images = ImageSet(
        np.zeros((12, 4, 4, 1), np.uint8),
        np.zeros((12, 4, 4), np.uint8),
        CLASSES,
        np.array([f"p{i:02d}" for i in range(12)]),
        np.array([f"s{i // 2}" for i in range(12)]),
    )
    tally = Tally(confusion, np.ones(12), np.ones((12, 3, 4), np.int64))
    run = create_run(folder, Recipe(seed=seed, name=f"r{right}"), Dataset(val=images, source="x"))
    run.add_predictions("val", images.task.table(tally, images, "val"))
    metrics = images.task.judge(tally, images, 100)
    val = Evaluation.model_validate({"task": "segmentation", "split": "val", **metrics})
    run.add_results(training=TrainingSummary(seconds=1.0), val=val)
    return run


def test_mean_iou_decides_and_scenes_are_drawn(tmp_path):
    runs = [make_run(tmp_path / f"{right}-{seed}", seed, right) for right in (0.9, 0.5) for seed in (0, 1)]
    for run in runs[2:]:  # another recipe
        tree = (run.folder / "recipe.yaml").read_text().replace("batch_size: 128", "batch_size: 64")
        (run.folder / "recipe.yaml").write_text(tree)
    found = compare([run.folder for run in runs], "val")
    assert found.metric == "miou" and found.n == 12
    best, worse = found.rows
    assert best.values == pytest.approx([run.results.val.value("miou") for run in runs[:2]])
    assert worse.contrast is not None and worse.contrast.verdict == "worse"
    assert best.others["pixel_accuracy"] is not None
    assert any("groups" in note for note in found.notes)
    assert "mean IoU" in as_text(found)
    json.dumps(found.as_dict())
    page = write_comparison(found, tmp_path / "page.html").read_text()
    assert "<h2>Mean IoU on " in page and "mean IoU" in page


def test_masks_are_not_compared_by_accuracy(tmp_path):
    run = make_run(tmp_path / "a", 0, 0.9)
    with pytest.raises(RequestError, match="cannot be compared by accuracy"):
        compare([run.folder], "val", metric="accuracy")


def test_other_masks_of_the_same_images_are_refused(tmp_path):
    runs = [make_run(tmp_path / "a", 0, 0.9), make_run(tmp_path / "b", 1, 0.9, masks=5)]
    with pytest.raises(RequestError, match="different targets for the same val images"):
        compare([run.folder for run in runs], "val")


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_numbers_of_pixels_that_are_none_are_refused(tmp_path, value):
    run = make_run(tmp_path / "a", 0, 0.9)
    table = run.predictions
    column = next(name for name in table if name.startswith("true_sand"))
    table[column] = table[column].astype(float)
    table.loc[3, column] = value
    table.to_parquet(run.folder / "predictions.parquet")
    with pytest.raises(RequestError, match=r"predictions\.parquet .*numbers of pixels"):
        compare([run.folder], "val")


def test_metrics_follow_from_the_table(tmp_path):
    run = make_run(tmp_path / "a", 0, 0.7)
    table: pd.DataFrame = run.predictions
    sums = {key: table[[f"{key}_{name}" for name in CLASSES]].sum().to_numpy() for key in ("true", "guessed", "found")}
    iou = sums["found"] / (sums["true"] + sums["guessed"] - sums["found"])
    assert run.results.val.value("miou_with_background") == pytest.approx(iou.mean())
    assert run.results.val.value("miou") == pytest.approx(iou[1:].mean())
