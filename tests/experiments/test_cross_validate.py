"""Cross-validation as one experiment: what is judged by what, that it goes on, and that its intervals hold what they should."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from petriscope import api
from petriscope.cli.commands import app
from petriscope.core.errors import DataError, PetriscopeError, RequestError
from petriscope.core.recipe import DistillSection, load_recipe
from petriscope.core.results import HELD_OUT, Evaluation, FoldResult, Metric
from petriscope.data import load_dataset
from petriscope.experiments import auto, bench
from petriscope.experiments.cross_validate import cross_validate, widened
from petriscope.inference.predictor import load_model
from petriscope.metrics.intervals import proportion95, resampled95
from petriscope.run.folder import Run
from petriscope.ship import card
from petriscope.tasks import find_task

QUICK = ("training.epochs=3", "evaluation.tta=mirror")


@pytest.fixture(scope="module")
def unsplit(tmp_path_factory):
    """120 images of 12x12 in two classes, bright and dark, in groups of three, without splits."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) // 3 % 2
    images = rng.integers(0, 160, (120, 12, 12, 3)) + labels[:, None, None, None] * 90
    folder = tmp_path_factory.mktemp("folds")
    np.savez(folder / "cells.npz", train_images=images.astype(np.uint8), train_labels=labels)
    return folder / "cells.npz"


@pytest.fixture(scope="module")
def made(unsplit, tmp_path_factory):
    """An ensemble of two folds, drawn twice, and the folder of all."""
    tree = {
        "name": "tiny",
        "data": {"source": str(unsplit), "block": 3},
        "augment": ["flip"],
        "model": {"name": "simple-cnn", "norm": "batch", "widths": [4, 8, 8], "hidden": 8},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "training": {"batch_size": 16, "precision": "fp32", "device": "cpu"},
        "evaluation": {"bootstrap": 100, "stress": "off"},
    }
    recipe, out = load_recipe("demo", QUICK, **tree), tmp_path_factory.mktemp("made") / "out"
    return cross_validate(recipe, 2, 2, "ensemble", out, quiet=True), out, recipe


def test_each_image_is_predicted_by_the_networks_that_did_not_learn_from_it(made):
    run, out, _ = made
    found, table = run.results.cross_validation, run.predictions.set_index("id")
    assert (found.folds, found.repeats, found.networks, found.images, found.never) == (2, 2, 4, 120, 0)
    assert (table["split"] == HELD_OUT).all() and len(table) == 120
    total, temperature = {}, found.pooled.calibration.temperature
    for folder in sorted(out.glob("repeat*")):
        predictor, fold = load_model(folder / "model.safetensors"), load_dataset(Run(folder).recipe.data)
        seen = predictor.exposure.roles(fold.test.digests())
        assert not seen.astype(bool).any() and not set(fold.test.groups) & {*fold.train.groups, *fold.val.groups}
        predictor.trust = type(predictor.trust)()  # without its own temperature
        for name, p in zip(fold.test.ids, predictor.probabilities(fold.test.images), strict=True):
            total.setdefault(str(name), []).append(p)
    assert all(len(each) == 2 for each in total.values())
    raw = np.array([np.mean(total[name], 0) for name in table.index])
    scaled = raw ** (1 / temperature)
    scaled /= scaled.sum(1, keepdims=True)
    np.testing.assert_allclose(table[["p_0", "p_1"]].to_numpy(), scaled, atol=1e-5)
    assert found.pooled.value("accuracy") == pytest.approx((table["target"] == table["predicted"]).mean())
    assert found.pooled.groups == 40


def test_the_model_is_the_mean_of_all_networks_and_says_what_it_has_seen(made):
    run, out, _ = made
    model = load_model(run.model)
    images = load_dataset(run.recipe.data).split("train")
    assert len(images) == 120 and (model.exposure.roles(images.digests()) == "train").all()
    model.trust = type(model.trust)()
    members = [load_model(folder / "model.safetensors") for folder in sorted(out.glob("repeat*"))]
    for each in members:
        each.trust = type(each.trust)()
    mean = np.mean([each.probabilities(images.images[:8]) for each in members], axis=0)
    np.testing.assert_allclose(model.probabilities(images.images[:8]), mean, atol=1e-5)
    assert load_model(run.model).trust.detector.features.whiten.size == 0, "features of seen images say nothing"
    seeds = {folder.name: Run(folder).recipe.seed for folder in out.glob("repeat*")}
    assert seeds["repeat1-fold1"] != seeds["repeat2-fold1"]


def test_the_page_says_what_the_figure_is_of(made):
    run, _, _ = made
    page = (run.folder / "report.html").read_text()
    for words in (
        "2-fold cross-validation, with folds that were drawn 2 times",
        "the model itself has seen all images",
        "images that are held out chose nothing",
        "There is no test split",
        "corrected resampled variance (Nadeau and Bengio, 2003)",
        "repeat2-fold1",
    ):
        assert words in page.replace("\N{NO-BREAK SPACE}", " "), words
    assert "damaged" not in page and "No epoch is finished" not in page


def test_it_is_finished_and_other_settings_are_refused(made, capsys, monkeypatch):
    run, out, recipe = made
    monkeypatch.setattr(bench, "train", None)  # nothing is trained again
    assert cross_validate(recipe, 2, 2, "ensemble", out).folder == run.folder
    assert "nothing to do" in capsys.readouterr().err
    with pytest.raises(RequestError, match=r"was begun with other settings: data.folds.count was 2, is 3"):
        cross_validate(recipe, 3, 2, "ensemble", out)
    with pytest.raises(RequestError, match="seed was 0, is 5"):
        cross_validate(recipe.model_copy(update={"seed": 5}), 2, 2, "ensemble", out)
    with pytest.raises(RequestError, match="is made of 2 folds, 2 repeats and ensemble"):
        cross_validate(recipe, 2, 1, "ensemble", out)
    with pytest.raises(RequestError, match="is a run; choose another --out"):
        cross_validate(Run(out / "repeat1-fold1").recipe, 2, 1, "ensemble", out / "repeat1-fold1")


def test_other_commands_say_what_they_make_of_it(made, tmp_path):
    run, out, _ = made
    with pytest.raises(RequestError, match=r"it is a cross-validation, whose model is .*final"):
        api.evaluate(out)
    (tmp_path / "recipe.yaml").write_text((out / "recipe.yaml").read_text())
    with pytest.raises(RequestError, match="a cross-validation that is not finished; the command that began it"):
        api.resume(tmp_path)
    with pytest.raises(RequestError, match=r"judged by cross-validation and has no val.*compare on test"):
        api.compare([run.folder, out / "repeat1-fold1"])
    text = "".join(card._metrics(run.results))
    assert (
        "| metric | held-out (n = 120) |" in text and "2-fold cross-validation" in text and "Val was used" not in text
    )


def test_a_model_that_has_seen_the_images_teaches_nothing(made, tmp_path):
    _, out, recipe = made
    teacher = DistillSection(teachers=(str(out / "repeat1-fold1" / "model.safetensors"),))
    with pytest.raises(RequestError, match=r"has seen \d+ of these images"):
        cross_validate(recipe.model_copy(update={"distill": teacher}), 2, out=tmp_path / "out")


def test_what_failed_is_trained_by_the_same_call_and_all_images_make_the_model(made, tmp_path, monkeypatch):
    _, _, recipe = made
    out, real, calls = tmp_path / "out", bench.train, []

    def train(each, folder, quiet):
        calls.append(folder.name)
        if len(calls) == 2:
            raise PetriscopeError("out of luck")
        return real(each, folder, quiet)

    monkeypatch.setattr(bench, "train", train)
    with pytest.raises(PetriscopeError, match=r"1 of 3 trainings failed, the first: repeat 1, fold 2.*out of luck"):
        cross_validate(recipe, 2, 1, "all", out, quiet=True)
    calls.clear()
    run = cross_validate(recipe, 2, 1, "all", out, quiet=True)
    assert calls == ["repeat1-fold2"]
    ours, alone = load_file(run.model), load_file(out / "all1" / "model.safetensors")
    weights = [name for name in alone if name.startswith("model.")] or [name for name in alone if name in ours]
    assert weights and all((ours[name] == alone[name]).all() for name in weights if "trust" not in name)
    assert run.results.cross_validation.networks == 1 and not run.results.joined
    assert Run(out / "all1").environment.data.splits.keys() == {"train"}
    assert "trained on all 120 images" in (run.folder / "report.html").read_text().replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.slow
def test_the_command_trains_side_by_side_and_prints_what_was_held_out(made, tmp_path):
    _, _, recipe = made
    (tmp_path / "tiny.yaml").write_text(recipe.to_yaml())
    words = ["train", str(tmp_path / "tiny.yaml"), "--folds", "2", "--jobs", "2", "--out", str(tmp_path / "out")]
    words += ["--set", "training.epochs=1", "--set", "evaluation.tta=none"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "held-out, 120 images" in result.output and "trained on all images: 1 network" in result.output
    assert json.loads((tmp_path / "out" / "final" / "results.json").read_text())["cross_validation"]["folds"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--folds", "1"], "there must be 2 to 100 folds"),
        (["--folds", "2", "--final", "best"], "--final cannot be"),
        (["--repeats", "2"], "give --folds too"),
        (["--on", "ray"], "give --folds too"),
        (["--folds", "2", "--on", "slurm"], "--on cannot be 'slurm'"),
        (["--folds", "2", "--cpus", "2"], "give --on ray"),
        (["--folds", "2", "--set", "data.splits=x"], "folds are drawn anew"),
        (["--folds", "2", "--set", "data.stream=true"], "cannot be drawn into folds"),
    ],
)
def test_wrong_requests_are_refused(tiny_npz, words, message):
    with pytest.raises(RequestError, match=message):
        CliRunner().invoke(app, ["train", "demo", "--data", str(tiny_npz), *words], catch_exceptions=False)


def test_folds_without_a_recipe_share_what_is_left_of_a_budget_and_their_recipes_lead_to_the_same_weights(
    unsplit, tmp_path, monkeypatch
):
    late = auto._Keeper.is_late
    monkeypatch.setattr(
        auto._Keeper, "is_late", lambda self: late(self) or (self.trainer.at.epoch, self.trainer.at.batch) == (2, 3)
    )
    settings = ["model={name: simple-cnn, norm: batch, widths: [4, 8, 8], hidden: 8}", "training.precision=fp32"]
    settings += ["evaluation.bootstrap=100", "training.batch_size=8", "training.device=cpu"]
    out = tmp_path / "out"
    run = api.train(data=unsplit, processor_minutes=2, folds=2, out=out, settings=settings, quiet=True)
    assert run.results.cross_validation.final == "all"
    shares = [Run(out / name).results.budget.minutes for name in ("repeat1-fold1", "repeat1-fold2", "all1")]
    assert 0.2 < shares[0] < 1 and all(0.2 < share < 2 for share in shares)
    first = Run(out / "repeat1-fold1")
    training = first.recipe.training
    assert (training.epochs, training.ended.epoch, training.ended.steps) == (3, 3, 3)
    monkeypatch.undo()
    again = api.train(first.recipe, tmp_path / "again", quiet=True)
    one, other = load_file(first.model), load_file(again.model)
    assert one.keys() == other.keys() and all((one[key] == other[key]).all() for key in one)

    # The same call goes on; one for other images, another seed or other settings must not be answered with these metrics.
    request = {"data": unsplit, "folds": 2, "out": out, "settings": settings, "quiet": True}
    assert api.train(**request).folder == run.folder
    shutil.copy(unsplit, tmp_path / "other.npz")
    for change, words in (
        ({"data": tmp_path / "other.npz"}, "data.source was"),
        ({"seed": 5}, "seed was 0, is 5"),
        ({"settings": [*settings, "training.epochs=2"]}, "training.epochs was"),
    ):
        with pytest.raises(RequestError, match=f"begun with other settings: {words}"):
            api.train(**request | change)


@pytest.mark.parametrize("finished", [True, False])
def test_images_that_came_since_are_not_mixed_in(unsplit, made, tmp_path, finished):
    _, _, recipe = made
    shutil.copy(unsplit, tmp_path / "cells.npz")
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"source": str(tmp_path / "cells.npz")})})
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"epochs": 1})})
    out = tmp_path / "out"
    cross_validate(recipe, 2, 1, "ensemble", out, quiet=True)
    if not finished:
        shutil.rmtree(out / "final")
        shutil.rmtree(out / "repeat1-fold2")
    with np.load(unsplit) as arrays:
        more = {
            name: np.concatenate([array, 255 - array[:3] if array.ndim > 1 else array[:3]])
            for name, array in arrays.items()
        }
    np.savez(tmp_path / "cells.npz", **more)
    with pytest.raises(DataError, match=r"have changed since .*repeat1-fold1 was started"):
        cross_validate(recipe, 2, 1, "ensemble", out, quiet=True)


def test_masks_are_pooled(tmp_path, tiny_recipe):
    rng = np.random.default_rng(0)
    masks = np.zeros((24, 16, 16), np.uint8)
    masks[:, 4:12, 4:12] = 1
    images = rng.integers(0, 120, (24, 16, 16, 3)) + masks[..., None] * 100
    np.savez(tmp_path / "masks.npz", train_images=images.astype(np.uint8), train_masks=masks)
    recipe = tiny_recipe(
        data={"source": str(tmp_path / "masks.npz")},
        model={"name": "unet", "widths": [4, 8]},
        augment=[],
        schedule="cosine",
        training={"epochs": 2, "batch_size": 8, "ema": None},
    )
    with pytest.raises(RequestError, match="for masks, draw the folds once"):
        cross_validate(recipe, 2, 2, out=tmp_path / "out", quiet=True)
    run = cross_validate(recipe, 2, out=tmp_path / "out", quiet=True)
    found, table = run.results.cross_validation, run.predictions
    assert found.networks == 2 and found.pooled.n == 24 and len(table) == 24
    parts = [part.value("pixel_accuracy") for part in found.parts]
    assert found.pooled.value("pixel_accuracy") == pytest.approx(np.mean(parts))
    assert "damaged" not in (run.folder / "report.html").read_text()


def test_several_labels_are_judged_and_joined(tmp_path, tiny_recipe):
    rng = np.random.default_rng(0)
    labels = np.stack([np.arange(40) % 2, np.arange(40) // 2 % 2], 1).astype(np.uint8)
    images = rng.integers(0, 100, (40, 12, 12, 3))
    images[..., 0] += 100 * labels[:, 0, None, None]
    images[..., 1] += 100 * labels[:, 1, None, None]
    np.savez(tmp_path / "labels.npz", train_images=images.astype(np.uint8), train_labels=labels)
    recipe = tiny_recipe(
        "loss=binary-cross-entropy", "data.task=multilabel", data={"source": str(tmp_path / "labels.npz")}
    )
    run = cross_validate(recipe, 2, final="ensemble", out=tmp_path / "out", quiet=True)
    found = run.results.cross_validation
    assert found.final == "ensemble" and found.networks == 2 and found.pooled.n == 40
    assert load_model(run.folder, "cpu").predict(images[:8].astype(np.uint8)).probabilities.shape == (8, 2)
    assert "damaged" not in (run.folder / "report.html").read_text()


# ---------------------------------------------------------------------------------------------------------------- intervals


def part(fold, value):
    return FoldResult(run="r", repeat=1, fold=fold, n=10, metrics={"accuracy": Metric(value=value)}, series={})


def test_intervals_are_at_least_those_of_the_images_and_stay_in_range():
    task, held = (
        find_task("classification"),
        {"split": HELD_OUT, "n": 20, "accuracy": 0.9, "accuracy_ci95": [0.7, 0.97]},
    )
    pooled = Evaluation.model_validate(held)
    same = widened(pooled, [part(1, 0.9), part(2, 0.9)], 2, task).metric("accuracy").ci95
    assert same == (0.7, 0.97)
    wide = widened(pooled, [part(1, 0.8), part(2, 1.0)], 2, task).metric("accuracy").ci95
    assert wide[0] == 0.0 and wide[1] == 1.0
    lacking = widened(pooled, [part(1, 0.8), part(2, None)], 2, task).metric("accuracy").ci95
    assert lacking == (0.7, 0.97)


@pytest.mark.parametrize(("size", "repeats"), [(1, 1), (1, 3), (10, 1)])
def test_intervals_hold_the_accuracy_of_the_networks_as_often_as_they_should(size, repeats):
    """Linear classifiers on drawn data of which the accuracy on new data is known: the plain interval of the pooled predictions,
    which takes them as independent, holds it too rarely, and the corrected one often enough. Of 400 trials, 372, 359 and 372, and
    389, 378 and 381."""
    folds, count, features, trials = 5, 120, 20, 100
    rng = np.random.default_rng(size + repeats)
    held = {"plain": 0, "corrected": 0}

    def draw(n, each):
        group = np.arange(n) // each
        labels = rng.integers(0, 3, n)
        x = rng.normal(size=(n, features)) + 0.7 * rng.normal(size=(group.max() + 1, features))[group]
        x[np.arange(n), labels] += 2.2
        return x, labels, group

    for _ in range(trials):
        (x, y, group), (new_x, new_y, _) = draw(count, size), draw(1500, 1)
        right, values, truth = np.zeros(count), [], []
        for _ in range(repeats):
            fold = rng.permutation(np.arange(group.max() + 1) % folds)[group]
            for each in range(folds):
                rest = fold != each
                means = np.stack([x[rest & (y == label)].mean(0) for label in range(3)])
                within = x[rest] - means[y[rest]]
                weights = np.linalg.solve(within.T @ within / rest.sum() + 0.1 * np.eye(features), means.T)
                offset = (means.T * weights).sum(0) / 2
                hits = (x[~rest] @ weights - offset).argmax(1) == y[~rest]
                right[~rest] += hits / repeats
                values.append(hits.mean())
                truth.append(((new_x @ weights - offset).argmax(1) == new_y).mean())
        reach, mean = resampled95(np.array(values), folds), right.mean()
        low, high = proportion95(right >= 0.5, group if size > 1 else None)
        held["plain"] += low <= np.mean(truth) <= high
        held["corrected"] += abs(mean - np.mean(truth)) <= reach
    assert held["corrected"] / trials >= 0.93, held  # 0.95 but for the error of so few trials
    assert held["corrected"] >= held["plain"]
