"""The loop on masks: the same as on labels, with its own metrics, and refusing what does not fit."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from petriscope import api
from petriscope.core.errors import DataError, PetriscopeError, RequestError
from petriscope.core.masks import IGNORE
from petriscope.core.recipe import load_recipe
from petriscope.data import load_dataset
from petriscope.training.build import augmented_val
from petriscope.training.loop import Trainer


@pytest.fixture
def terrain_recipe():
    """Drawn terrain of 8x12, which a small network learns in a second."""

    def make(**overrides):
        tree = {
            "name": "terrain",
            "data": {"source": "synthetic-terrain:80", "size": [8, 12]},
            "augment": ["flip", {"name": "translate", "fraction": 0.1}],
            "model": {"name": "unet", "widths": [4, 8]},
            "optimizer": {"name": "adamw", "lr": 0.01},
            "loss": "cross-entropy",
            "schedule": "one-cycle",
            "training": {"epochs": 2, "batch_size": 16, "precision": "fp32", "device": "cpu", "checkpoint_seconds": 0},
            "evaluation": {"bootstrap": 100, "batch_size": 32, "stress": "off"},
        }
        for key, value in overrides.items():
            merges = isinstance(value, dict) and "name" not in value and isinstance(tree.get(key), dict)
            tree[key] = {**tree[key], **value} if merges else value
        return load_recipe("demo", **tree)

    return make


def same(one, other):
    a, b = load_file(one.model), load_file(other.model)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


VARIANTS = {
    "plain": {},
    "mixed, oversampled": {
        "augment": [
            "cutmix",
            {"name": "copy-paste", "classes": [3]},
            {"name": "crop-around", "classes": [3]},
            {"name": "rotate", "degrees": 20},
        ],
        "sampler": "oversample",
    },
    "sum of losses, sampled": {
        "loss": {"name": "sum", "terms": ["cross-entropy", {"name": "dice", "weight": 0.5}]},
        "sampler": "weighted",
        "training": {"swa": 0.6},
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_after_any_step_it_ends_bit_for_bit_the_same(variant, terrain_recipe, tmp_path, monkeypatch):
    recipe = terrain_recipe(**VARIANTS[variant])
    whole = api.train(recipe, tmp_path / "whole", quiet=True)
    steps = Trainer.train_step
    for stop_at in (1, 5):
        count = iter(range(1000))

        def killed(self, images, targets, stop_at=stop_at, count=count):
            if next(count) == stop_at:
                raise RuntimeError("killed")
            return steps(self, images, targets)

        monkeypatch.setattr(Trainer, "train_step", killed)
        with pytest.raises(RuntimeError, match="killed"):
            api.train(recipe, tmp_path / f"broken{stop_at}", quiet=True)
        monkeypatch.setattr(Trainer, "train_step", steps)
        resumed = api.resume(tmp_path / f"broken{stop_at}", quiet=True)
        assert same(resumed, whole)
        assert [(e.train, e.val, e.lr) for e in resumed.history] == [(e.train, e.val, e.lr) for e in whole.history]


def test_it_learns_and_keeps_the_best_by_mean_iou(terrain_recipe, tmp_path):
    run = api.train(terrain_recipe(training={"epochs": 8, "batch_size": 8}), tmp_path / "run", quiet=True)
    values = [line.val["miou"] for line in run.history]
    assert values[-1] > 1.3 * values[0]
    training = run.results.training
    assert training.monitor == "miou"
    assert training.best_epoch == int(np.argmax(values)) + 1
    assert run.results.val.value("miou") == pytest.approx(max(values)) == pytest.approx(training.best)
    assert 0 < run.history[-1].train["accuracy"] < 1
    assert run.environment.data.classes == ["soil", "bedrock", "sand", "big rock"]
    assert run.environment.data.task == run.results.task == "segmentation"


def test_early_stopping_and_another_monitor(terrain_recipe, tmp_path):
    settings = {"epochs": 40, "patience": 1, "monitor": "loss"}
    run = api.train(terrain_recipe(training=settings, optimizer={"lr": 0.1}), tmp_path / "run", quiet=True)
    losses = [line.val["loss"] for line in run.history]
    assert len(losses) < 40
    assert run.results.training.best_epoch == int(np.argmin(losses)) + 1 == len(losses) - 1


def test_a_run_holds_metrics_predictions_and_examples(terrain_recipe, tmp_path):
    run = api.train(terrain_recipe(), tmp_path / "run", quiet=True)
    result = api.evaluate(run.folder, tta="flips", quiet=True)
    assert result.split == "test" and result.tta == "flips"
    for key in ("miou", "pixel_accuracy", "boundary_f1"):
        low, high = result.metric(key).ci95
        assert 0 <= low <= result.value(key) <= high <= 1
    assert set(result.per_class) == {"soil", "bedrock", "sand", "big rock"}
    assert run.results.test == result
    table = run.predictions
    assert set(table["split"]) == {"val", "test"}
    assert (table["split"] == "test").sum() == result.n
    gallery = run.gallery
    for split in ("val", "test"):
        arrays = {key: gallery[f"segments_{split}_{key}"] for key in ("images", "truth", "predicted", "confidence")}
        count = len(gallery[f"segments_{split}_ids"])
        assert {array.shape[:3] for array in arrays.values()} == {(count, 8, 12)}
        assert arrays["predicted"].max() < 4 and set(np.unique(arrays["truth"])) <= {0, 1, 2, 3, IGNORE}
        assert set(gallery[f"segments_{split}_rank"]) == {"best", "median", "worst"}
        assert (np.diff(gallery[f"segments_{split}_miou"]) <= 0).all()
    images, masks = gallery["augmented"], gallery["augmented_masks"]
    assert images.shape[2:] == (8, 12, 1) and masks.shape == images.shape[:-1]
    train = load_dataset(run.recipe.data).train
    at = [int(np.flatnonzero((train.images == plain).all((1, 2, 3)))[0]) for plain in images[:, 0]]
    assert np.array_equal(masks[:, 0], train.targets[at])
    assert (masks[:, 1:] == IGNORE).any(), "what a shift brings in"
    page = (run.folder / "report.html").read_text()
    assert page.count("Targets of training image") == len(images) and "Below each row" in page
    run.write_gallery("augmented", augmented=images)
    assert "Below each row" not in api.report(run.folder).path.read_text(), "older runs have no such masks"


def test_other_data_are_evaluated_by_the_names_of_their_classes(terrain_recipe, tmp_path):
    run = api.train(terrain_recipe(), tmp_path / "run", quiet=True)
    own = api.evaluate(run.folder, quiet=True)
    test = load_dataset(run.recipe.data).split("test")
    stored = np.where(test.targets == IGNORE, 0, test.targets + 1).astype(np.uint8)
    names = np.array(["background", *test.classes])
    path = tmp_path / "other.npz"
    np.savez(path, test_images=test.images[..., 0], test_masks=stored, classes=names, test_groups=test.groups)
    recipe = run.recipe.model_copy(update={"data": run.recipe.data.model_copy(update={"ignore": "background"})})
    (run.folder / "recipe.yaml").write_text(recipe.to_yaml())
    with pytest.raises(DataError, match="background"):
        api.evaluate(run.folder, data=str(path), quiet=True)
    again = api.evaluate(run.folder, data=str(remasked(path, names)), quiet=True)
    assert again.value("miou") == own.value("miou") and again.confusion == own.confusion


def remasked(path, names):
    """The same masks with what is unlabeled marked as such."""
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays["test_masks"] = np.where(arrays["test_masks"] == 0, IGNORE, arrays["test_masks"] - 1).astype(np.uint8)
    arrays["classes"] = names[1:]
    np.savez(path.with_name("marked.npz"), **arrays)
    return path.with_name("marked.npz")


def test_val_may_be_augmented_with_its_masks(terrain_recipe, tmp_path):
    settings = {"augment_val": [{"name": "flip", "horizontal": 1}], "bootstrap": 100, "batch_size": 32}
    dataset = load_dataset(terrain_recipe().data)
    turned = augmented_val(terrain_recipe(evaluation=settings), dataset.val)
    assert np.array_equal(turned.targets, dataset.val.targets[:, :, ::-1])
    assert np.array_equal(turned.images, dataset.val.images[:, :, ::-1])


REFUSED = {
    "a classifier": ({"model": "simple-cnn"}, "masks: choose a model that predicts one class per pixel"),
    "a segmenter on labels": ({"data": {"source": "digits", "size": 16}}, "labels: choose a model .* per image"),
    "another task than the data have": (
        {"data": {"task": "classification"}},
        "classification, but .* masks as targets",
    ),
    "mixup": ({"augment": ["mixup"]}, "MixUp blends images"),
    "a monitor of labels": ({"training": {"monitor": "macro_f1"}}, "for the task segmentation; known: miou"),
    "distilling": ({"distill": {"teachers": "x"}}, "distill works only for classification"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_and_leaves_nothing(case, terrain_recipe, tmp_path):
    overrides, message = REFUSED[case]
    with pytest.raises(RequestError, match=message):
        api.train(terrain_recipe(**overrides), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_labels_are_not_judged_by_mean_iou(tiny_recipe, tmp_path):
    with pytest.raises(RequestError, match="for the task classification; known: accuracy"):
        api.train(tiny_recipe(training={"monitor": "miou"}), tmp_path / "run", quiet=True)


@pytest.mark.parametrize("val", [True, False])
def test_a_diverged_run_says_so_and_is_not_finished(val, terrain_recipe, tmp_path):
    recipe = terrain_recipe(
        data={"val_fraction": 0.2 if val else 0},
        optimizer={"name": "sgd", "lr": 1e30},
        schedule="constant",
        training={"epochs": 1, "batch_size": 80, "ema": None},
    )
    with pytest.raises(PetriscopeError, match=r"diverged.*optimizer\.lr"):
        api.train(recipe, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_val_without_labeled_pixels_has_no_metrics_and_chooses_nothing(terrain_recipe, tmp_path, capsys):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    masks = (images[..., 0] > 128).astype(np.uint8)
    unlabeled = np.full((4, 8, 8), IGNORE, np.uint8)
    np.savez(tmp_path / "x.npz", train_images=images, train_masks=masks, val_images=images[:4], val_masks=unlabeled)
    for monitor in ("miou", "loss"):
        recipe = terrain_recipe(
            data={"source": str(tmp_path / "x.npz"), "size": None, "ignore": IGNORE},
            augment=[],
            training={"monitor": monitor},
        )
        run = api.train(recipe, tmp_path / monitor)
        assert run.finished and run.results.training.best_epoch is None
        assert [set(line.val.values()) for line in run.history] == [{None}, {None}]
        said = capsys.readouterr().err
        assert "not defined on val in any epoch" in said and "nan" not in said.lower().replace("nano", "")
        assert "nan %" not in (run.folder / "report.html").read_text()
    assert run.results.val.value("miou") is None
