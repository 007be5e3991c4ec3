"""What an evaluation keeps of errors and explanations, from training to the report."""

import numpy as np
import pytest

from petriscope import api
from petriscope.experiments.diagnostics import small, small_masks
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
    facts, gallery = kept.results[split]["errors"], kept.gallery
    counts = wrong.groupby(["target", "predicted"]).size()
    first = facts["pairs"][0]
    assert first["count"] == counts.max() == counts[first["true"], first["predicted"]]
    assert len(gallery[f"confused_{split}"]) == sum(len(pair["ids"]) for pair in facts["pairs"])
    assert {i for pair in facts["pairs"] for i in pair["ids"]} <= set(wrong["id"])
    for attribute in facts["groups"]:
        right = sum(round(group["accuracy"] * group["n"]) for group in attribute["groups"])
        assert sum(group["n"] for group in attribute["groups"]) == len(table)
        assert right == len(table) - len(wrong)
    beside = facts["neighbors"]
    assert beside["among"] == beside["of"] == 150
    shown = gallery[f"neighbors_{split}"]
    assert shown.shape == (len(beside["mistakes"]), 6, 12, 12, 3) and shown.dtype == np.uint8
    assert beside["mistakes"][0]["confidence"] == pytest.approx(wrong["confidence"].max(), abs=1e-5)
    assert all(i.startswith("train/") for row in beside["mistakes"] for i in row["ids"])


@pytest.mark.parametrize("split", ["val", "test"])
def test_explanations_are_of_right_and_wrong_images(kept, split):
    facts, gallery = kept.results[split]["explanations"], kept.gallery
    shown = gallery[f"explained_{split}"]
    assert facts["method"] == "hires-cam"
    assert len(shown) == len(facts["ids"]) == facts["shown"]
    assert gallery[f"explained_{split}_maps"].shape == (len(shown), 2, 12, 12)
    assert set(facts["check"]["methods"]) == {"hires-cam", "grad-cam", "grad-cam++", "occlusion"}
    assert facts["check"]["n"] == {"val": 90, "test": 66}[split]


def test_the_report_shows_both_and_is_made_anew_from_the_folder(kept):
    before = (kept.folder / "report.html").read_text(encoding="utf-8")
    for words in (
        'id="errors"',
        'href="#errors"',
        'id="looks"',
        'href="#looks"',
        "Kinds of image",
        "Can these maps be trusted?",
        "HiResCAM",
        "a centered blob",
        "nearest of the 150 training images",
        "Errors on val",
    ):
        assert words in before, words
    api.report(kept.folder)
    assert (kept.folder / "report.html").read_text(encoding="utf-8") == before


def test_evaluating_twice_gives_the_same(kept):
    before = kept.results["test"]
    api.evaluate(kept.folder, quiet=True)
    assert kept.results["test"] == before


def test_other_data_leave_the_run_as_it_was(kept, tmp_path):
    before = kept.results
    result = api.evaluate(kept.folder, data=kept.recipe.data.source, split="val", quiet=True)
    assert "errors" not in result and "explanations" not in result
    assert kept.results == before


@pytest.mark.parametrize(("height", "width", "expected"), [(12, 9, (12, 9)), (192, 96, (96, 48)), (97, 10, (96, 10))])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_small_images_stay_and_large_ones_shrink(height, width, expected, channels):
    images = np.full((2, height, width, channels), 77, dtype=np.uint8)
    assert (small(images) == 77).all()
    assert small(images).shape == (2, *expected, channels)
    assert small(images[:0]).shape == (0, *expected, channels)


def test_small_masks_keep_classes_and_lie_as_their_images_do():
    masks = np.zeros((2, 192, 96), dtype=np.uint8)
    masks[:, :96], masks[:, :, 48:] = 3, 7
    shrunk = small_masks(masks)
    assert shrunk.shape == (2, *small(masks[..., None]).shape[1:3]) == (2, 96, 48)
    expected = np.zeros((96, 48), dtype=np.uint8)
    expected[:48], expected[:, 24:] = 3, 7
    np.testing.assert_array_equal(shrunk[1], expected)
    assert small_masks(masks[:, :20, :30]).shape == (2, 20, 30)
