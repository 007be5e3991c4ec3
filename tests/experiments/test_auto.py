"""Training without a recipe: what is planned for which images, and that its recipe leads to the same weights."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from petriscope import api
from petriscope.cli.commands import app
from petriscope.core.errors import DataError, RequestError
from petriscope.core.recipe import load_recipe
from petriscope.data import load_dataset
from petriscope.experiments import auto, survey
from petriscope.experiments.auto import plan
from petriscope.experiments.budget import Budget, Clock, Load, Pace, best, longest
from petriscope.experiments.candidates import augmentations, ladder, size_at, tree_of
from petriscope.experiments.orientation import WAYS, Orientation
from petriscope.run.folder import open_run
from petriscope.training.build import check_parts
from petriscope.training.loop import Trainer

ANY = Orientation(tuple(WAYS), dict.fromkeys(WAYS, 0.9), 0.9)


def budget(minutes=0.2):
    return Clock(Budget(minutes, processor=True))


@pytest.mark.parametrize("side", [8, 21, 28, 50, 96, 4000])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("weights", [False, True])
def test_every_candidate_is_a_recipe_for_images_that_are_not_enlarged(side, dense, weights):
    for gpu in (False, True):
        rungs = ladder(side, dense, True, gpu, weights) + ladder(side, dense, False, gpu, weights)
        assert len(rungs) >= 2
        for rung in rungs:
            size = size_at(side, side, rung.side)
            assert max(size) <= max(side, 8)
            check_parts(load_recipe("demo", **tree_of(rung, size, ANY, 32, 3, rare=False)))


def test_small_images_that_may_be_turned_get_the_network_there_is_time_for():
    rungs = ladder(28, False, True, gpu=False, weights=False)
    steps = {"d4-resnet": 0.38, "se-cnn": 0.13, "simple-cnn": 0.08}  # seconds per 128 images, on one core
    loads = [Load(10_000, 1700, 128, 0.0, Pace(steps[rung.model["name"]], 0.0, 5e-4)) for rung in rungs]

    def chosen(seconds):
        lengths = [longest(load, seconds, 3 * rung.passes) for load, rung in zip(loads, rungs, strict=True)]
        return rungs[best(lengths, [rung.passes for rung in rungs])].model["name"]

    assert [chosen(seconds) for seconds in (90, 240, 700)] == ["simple-cnn", "se-cnn", "d4-resnet"]


def test_wide_images_keep_their_proportions():
    assert size_at(480, 1920, 96) == (48, 192)
    assert size_at(28, 28, 64) == (28, 28)
    assert size_at(1000, 1050, 64) == (64, 64)
    assert min(size_at(10, 4000, 32)) == 8


def test_only_what_the_data_allow_is_mirrored_or_turned():
    def names(orientation):
        return [part["name"] for part in augmentations((64, 64), orientation, False, {})]

    assert {"flip", "quarter-turn", "rotate"} <= set(names(ANY))
    assert not {"flip", "quarter-turn", "rotate"} & set(names(Orientation()))
    mirrored = augmentations((28, 28), Orientation(("mirrored",)), False, {})
    assert {"name": "flip", "horizontal": 0.5} in mirrored
    assert {"name": "flip", "horizontal": 0.0, "vertical": 0.5} in augmentations(
        (28, 28), Orientation(("upside down",)), False, {}
    )


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """A folder of two classes, wide images of many sizes: dark and bright ones."""
    root = tmp_path_factory.mktemp("auto") / "wide cells"
    rng = np.random.default_rng(0)
    for label, level in (("dark", 60), ("bright", 160)):
        (root / label).mkdir(parents=True)
        for number in range(24):
            height = 24 + number % 5
            pixels = rng.integers(level, level + 60, (height, 3 * height, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number}.png")
    tall = rng.integers(0, 255, (60, 20, 3), dtype=np.uint8)
    Image.fromarray(tall).save(root / "dark" / "0 tall.png")
    return root


@pytest.fixture(scope="module")
def trained(cells, tmp_path_factory):
    """A run that was planned, and corrected while it trained."""
    out = tmp_path_factory.mktemp("auto runs") / "run"
    looks = iter([6, 3])

    def look(self):
        if self.trainer.at.epoch in (1, 2):
            self.trainer.correct(next(looks))
            self.run.write_recipe(self.trainer.recipe)

    settings = ["training.precision=fp32", "evaluation.stress=off", "evaluation.bootstrap=100"]
    settings += ["training.images_per_epoch=80", "training.batch_size=8"]  # ten steps
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auto._Keeper, "look", look)
        patch.setattr(auto._Keeper, "is_late", lambda self: False)
        patch.setattr(auto, "AFTERWARDS", 1.0)
        return api.train(data=cells, processor_minutes=0.5, out=out, settings=settings, seed=3, quiet=True)


def test_the_recipe_of_the_run_leads_to_the_same_weights(trained, tmp_path):
    recipe = load_recipe(trained.folder / "recipe.yaml")
    assert [each.epoch for each in recipe.training.corrections] == [1, 2]
    assert recipe.training.epochs == 3 == trained.results.training.epochs
    again = api.train(recipe, tmp_path / "again", quiet=True)
    first, second = load_file(trained.model), load_file(again.model)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert (trained.folder / "report.html").is_file()


def test_it_is_killed_and_resumed_as_it_was_planned(trained, tmp_path, monkeypatch):
    recipe = load_recipe(trained.folder / "recipe.yaml")
    steps, count = Trainer.train_step, iter(range(1000))

    def killed(self, images, targets):
        if next(count) == 25:
            raise RuntimeError("killed")
        return steps(self, images, targets)

    monkeypatch.setattr(Trainer, "train_step", killed)
    with pytest.raises(RuntimeError, match="killed"):
        api.train(recipe, tmp_path / "run", quiet=True)
    monkeypatch.setattr(Trainer, "train_step", steps)
    resumed = load_file(api.resume(tmp_path / "run", quiet=True).model)
    whole = load_file(trained.model)
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


def test_what_was_given_and_taken_is_kept(trained):
    found = open_run(trained.folder).results.budget
    assert found.processor
    assert found.minutes == 0.5
    assert found.processor_seconds > 0
    assert found.wall_seconds > 0
    assert len(found.plan) == 5
    assert trained.recipe.name == "auto-wide-cells"
    assert trained.recipe.seed == 3
    assert trained.recipe.training.precision == "fp32"


def test_what_follows_training_is_cut_by_the_clock_and_can_be_made_later(cells, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(auto, "REPORT", 60.0)  # seconds, more than there are
    settings = ["training.precision=fp32", "training.epochs=1", "training.batch_size=8", "evaluation.bootstrap=100"]
    run = api.train(data=cells, minutes=0.05, out=tmp_path / "run", settings=settings, quiet=True)
    val = run.results.val
    assert val.explanations.method is None and val.errors.neighbors is None and not run.results.stress
    words = f"petriscope evaluate {run.folder} --split val --stress"
    assert f"the stress test; to make up for it: {words}" in capsys.readouterr().err
    assert "There are no maps: there was no time" in (run.folder / "report.html").read_text()
    api.evaluate(run.folder, split="val", quiet=True)
    assert run.results.val.explanations.method is not None
    assert run.results.val.value("accuracy") == val.value("accuracy")


def test_a_budget_that_cannot_be_kept_is_refused_and_nothing_is_made(cells, tmp_path, monkeypatch):
    monkeypatch.setattr(auto, "CERTAIN", 4.0)
    monkeypatch.setattr(auto, "FEWEST_SEEN", 10**9)  # images, all of which have to be predicted
    found = plan(cells, budget(1))
    assert found.impossible is None
    monkeypatch.setattr(auto, "CERTAIN", 100.0)
    for minutes in (0.2, 1.6):  # there is too little time after reading, and after planning
        monkeypatch.setattr(auto, "POSSIBLE", 0.9)
        with pytest.raises(RequestError, match=r"cannot be kept: .* take about 1 min 4\d s here.* Give --minutes \d"):
            api.train(data=cells, minutes=minutes, out=tmp_path / "run", quiet=True)
        assert not (tmp_path / "run").exists()


def test_equal_images_of_two_classes_are_said(tmp_path):
    rng = np.random.default_rng(0)
    for label in "ab":
        (tmp_path / "torn" / label).mkdir(parents=True)
        (tmp_path / "same" / label).mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(0, 255, (9, 9), dtype=np.uint8) if number else np.full((9, 9), 7, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "torn" / label / f"{number}.png")
            Image.fromarray(np.full((9, 9), 7, np.uint8)).save(tmp_path / "same" / label / f"{number}.png")
    (said,) = (text for text in load_dataset(str(tmp_path / "torn")).warnings if "pixel for pixel" in text)
    assert said.startswith("2 images are equal, pixel for pixel, to some of another class")
    assert "a/0.png (a)" in said and "b/0.png (b)" in said
    (said,) = (text for text in load_dataset(str(tmp_path / "same")).warnings if "pixel for pixel" in text)
    assert said.startswith("all 12 images are equal")


def test_a_plan_says_what_becomes_of_images(cells):
    found = plan(cells, budget(0.1), ["training.epochs=2"])
    height, width = found.dataset.shape[:2]
    assert 2.5 < width / height < 3.5
    assert len(found.lines) == 5
    assert "squashed by more than a quarter, the first: dark/0 tall.png (60x20)" in found.lines[1]
    assert found.recipe.training.epochs == 2
    assert "kept to whatever the time" in found.lines[3]


def test_few_images_are_proposed_for_cross_validation(cells, tiny_npz):
    found = plan(cells, budget(), ["training.batch_size=8"])
    words = "--folds 5 --set training.batch_size=8 --processor-minutes 0.2"
    assert any("judges by all 49" in note and note.endswith(words) for note in found.notes)
    crossed = plan(cells, budget(), ["training.batch_size=8"], folds=4)
    assert {name: len(part) for name, part in crossed.dataset.splits.items()} == {"train": 31, "val": 5, "test": 13}
    assert not any("--folds" in note for note in crossed.notes)
    assert not any("--folds" in note for note in plan(tiny_npz, budget()).notes), "its test split is the source's"
    none = plan(cells, budget(), ["training.batch_size=8", "data.test_fraction=0"])
    assert any("of val judge the network" in note for note in none.notes)


def test_a_set_of_twenty_images_has_some_of_each_class_in_val(tmp_path):
    rng = np.random.default_rng(0)
    for label in "abcd":
        (tmp_path / "few" / label).mkdir(parents=True)
        for number in range(5):
            pixels = rng.integers(0, 255, (9, 9), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "few" / label / f"{number}.png")
    found = plan(tmp_path / "few", budget(0.1))
    assert (found.dataset.val.counts >= 1).all()
    assert found.dataset.test is None
    assert any("no test split" in note for note in found.notes)
    assert "too few to tell" in found.lines[1]
    assert found.recipe.data.val_fraction >= 0.2
    kept = plan(tmp_path / "few", budget(0.1), ["data.val_fraction=0.3", "data.test_fraction=0.2"])
    assert kept.dataset.test is not None


def test_masks_get_a_network_for_masks():
    found = plan("synthetic-terrain:60", budget(0.1))
    assert found.recipe.model.name == "unet"
    assert found.dataset.task.dense
    check_parts(found.recipe)


def test_images_of_five_channels_and_sixteen_bits_are_planned_for(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 2
    images = rng.integers(0, 30_000, (120, 40, 40, 5)) + labels[:, None, None, None] * 20_000
    np.savez(tmp_path / "deep.npz", train_images=images.astype(np.uint16), train_labels=labels)
    found = plan(tmp_path / "deep.npz", budget(0.15), ["data.depth=16"])
    assert "5 channels" in found.lines[1]
    assert found.dataset.shape[2] == 5
    check_parts(found.recipe)


def test_a_model_of_the_user_is_planned_for(tiny_npz):
    found = plan(
        tiny_npz, budget(0.1), ["model={name: se-cnn, widths: [4, 8], depths: [1, 1], pool: false}", "augment=[]"]
    )
    assert found.recipe.model.options["widths"] == [4, 8]
    assert found.recipe.augment == ()
    assert "as augment is set" in found.lines[1]
    sized = plan(tiny_npz, budget(0.1), ["data.size=8"])
    assert sized.dataset.shape == (8, 8, 3)


def test_what_val_lacks_is_said(tiny_npz, tmp_path):
    with np.load(tiny_npz) as arrays:
        arrays = dict(arrays)
    arrays["val_images"], arrays["val_labels"] = arrays["val_images"][::2], arrays["val_labels"][::2]
    np.savez(tmp_path / "lacking.npz", **arrays)
    found = plan(tmp_path / "lacking.npz", budget(0.1))
    assert any(note == "val has none of 1 class, so nothing shows how well it is recognized: 1" for note in found.notes)
    del arrays["val_images"], arrays["val_labels"]
    np.savez(tmp_path / "none.npz", **arrays)
    found = plan(tmp_path / "none.npz", budget(0.1), ["data.val_fraction=0"])
    assert any("nothing shows how good" in note for note in found.notes)


def test_the_command_prints_a_plan_alone_or_trains(tiny_npz, tmp_path):
    runner = CliRunner()
    shown = runner.invoke(
        app, ["train", "--data", str(tiny_npz), "--processor-minutes", "0.4", "--dry-run"], catch_exceptions=False
    )
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["data", "images", "network", "training", "then"]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demo", "--minutes", "3"], "and no recipe"),
        (["--resume", "runs/x", "--dry-run"], "and no recipe"),
        ([], "name your images with --data, or a recipe"),
        (["--data", "digits", "--minutes", "1", "--processor-minutes", "1"], "not both"),
        (["--data", "digits", "--minutes", "0"], "more than 0"),
        (["--data", "no-such-place"], "no data source"),
        (["--data", "digits", "--set", "no.such=1"], "unknown key"),
    ],
)
def test_requests_that_cannot_be_are_refused(words, message):
    found = CliRunner().invoke(app, ["train", *words])
    assert isinstance(found.exception, (RequestError, DataError))
    assert message in str(found.exception)


def test_python_takes_a_recipe_or_data(tiny_recipe, tiny_npz):
    with pytest.raises(RequestError, match="data without a recipe"):
        api.train()
    with pytest.raises(RequestError, match="data without a recipe"):
        api.train(tiny_recipe(), data=tiny_npz)
    with pytest.raises(RequestError, match="in the recipe itself"):
        api.train(tiny_recipe(), minutes=3)


def test_sizes_are_looked_at_before_images_are_read(cells):
    found = survey.look_at_files(load_recipe("demo", data={"source": str(cells)}).data)
    assert found.count == 49
    assert found.mixed
    assert not found.masks
    height, width = found.typical
    assert width / height == pytest.approx(3, rel=0.05)
    assert json.dumps(found.squashed((24, 72))).count("tall") == 1
    assert survey.look_at_files(load_recipe("demo", data={"source": "digits"}).data) is None
