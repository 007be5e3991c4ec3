"""Errors and explanations of an evaluated split, from training to the report."""

import numpy as np
import pytest

from petriscope import api
from petriscope.run.folder import open_run


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run on three kinds of image, two of them alike, so that it errs."""
    folder = tmp_path_factory.mktemp("inspect")
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 150), ("val", 90), ("test", 66)):
        labels = np.arange(count) % 3
        images = rng.integers(0, 120, (count, 12, 12, 3)) + np.array([0, 60, 66])[labels][:, None, None, None]
        arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels[:, None].astype(np.uint8)}
    np.savez(folder / "three.npz", **arrays)
    from petriscope.core.recipe import load_recipe

    recipe = load_recipe(
        "demo",
        name="three",
        data={"source": str(folder / "three.npz")},
        augment=["flip"],
        model={"name": "simple-cnn", "norm": "batch", "widths": [4, 8, 8], "hidden": 8},
        optimizer={"name": "adamw", "lr": 0.01},
        training={"epochs": 2, "batch_size": 16, "precision": "fp32", "device": "cpu"},
        evaluation={"bootstrap": 100},
    )
    api.train(recipe, folder / "run", quiet=True)
    api.evaluate(folder / "run", quiet=True)
    return open_run(folder / "run")


@pytest.mark.parametrize("split", ["val", "test"])
def test_errors_are_those_of_the_predictions(kept, split):
    table = kept.predictions
    table = table[table["split"] == split]
    wrong = table[table["target"] != table["predicted"]]
    assert len(wrong), "the images are too easy for this test"
    errors, gallery = kept.results.split(split).errors, kept.gallery
    counts = wrong.groupby(["target", "predicted"]).size()
    first = errors.pairs[0]
    assert first.count == counts.max() == counts[first.true, first.predicted]
    assert len(gallery[f"confused_{split}"]) == sum(len(pair.ids) for pair in errors.pairs)
    assert {i for pair in errors.pairs for i in pair.ids} <= set(wrong["id"])
    for attribute in errors.groups:
        right = sum(round(group.accuracy * group.n) for group in attribute.groups)
        assert sum(group.n for group in attribute.groups) == len(table)
        assert right == len(table) - len(wrong)
    nearest = errors.neighbors
    assert nearest.among == nearest.of == 150
    shown = gallery[f"neighbors_{split}"]
    assert shown.shape == (len(nearest.mistakes), 6, 12, 12, 3) and shown.dtype == np.uint8
    assert nearest.mistakes[0].confidence == pytest.approx(wrong["confidence"].max(), abs=1e-5)
    assert all(i.startswith("train/") for row in nearest.mistakes for i in row.ids)


@pytest.mark.parametrize("split", ["val", "test"])
def test_explanations_are_of_right_and_wrong_images(kept, split):
    explained, gallery = kept.results.split(split).explanations, kept.gallery
    shown = gallery[f"explained_{split}"]
    assert explained.method == "hires-cam"
    assert len(shown) == len(explained.ids) == explained.shown
    assert gallery[f"explained_{split}_maps"].shape == (len(shown), 2, 12, 12)
    assert set(explained.check.methods) == {"hires-cam", "grad-cam", "grad-cam++", "occlusion"}
    assert explained.check.n == {"val": 90, "test": 66}[split]


def test_the_report_shows_both_and_is_made_again_from_the_folder(kept):
    before = (kept.folder / "report.html").read_text(encoding="utf-8")
    assert 'id="errors"' in before and "HiResCAM" in before and "150 training images" in before
    api.report(kept.folder)
    assert (kept.folder / "report.html").read_text(encoding="utf-8") == before


def test_evaluating_twice_gives_the_same(kept):
    before = kept.results.test
    api.evaluate(kept.folder, quiet=True)
    assert kept.results.test == before


def test_other_data_leave_the_run_as_it_was(kept, tmp_path):
    before = kept.results
    with np.load(kept.recipe.data.source) as file:
        others = {name: array ^ 1 if "images" in name else array for name, array in file.items()}
    np.savez(tmp_path / "others.npz", **others)
    result = api.evaluate(kept.folder, data=tmp_path / "others.npz", split="val", quiet=True)
    assert result.errors is None and result.explanations is None
    assert kept.results == before
