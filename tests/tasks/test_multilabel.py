"""Any number of labels per image, from training to the report, through the commands that people use."""

import json
import subprocess
import sys
from dataclasses import replace
from io import StringIO

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from petriscope import api
from petriscope.core.errors import DataError, Interrupted, PetriscopeError, RequestError
from petriscope.core.recipe import check_recipe
from petriscope.data import load_dataset
from petriscope.inference.exported import open_package
from petriscope.inference.label_answers import guarantees
from petriscope.inference.offline import main as offline
from petriscope.inference.package import MANIFEST, Manifest, Measured, Package
from petriscope.inference.predictor import load_model
from petriscope.inference.verification import Differences, compare_outputs, verify
from petriscope.ship.lowered import check_cost
from petriscope.ship.server.opening import open_model
from petriscope.ship.server.served import Asked
from petriscope.training import adaptation
from petriscope.training.loop import Trainer

CLASSES = ("red", "green", "blue")


def draw(count, seed=0):
    """Images of noise in which the channel of each label is brighter on the whole; its brightness varies, so that a network
    cannot be right always. uint8 [N, 12, 12, 3], and labels, uint8 [N, 3]."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((count, 3)) < (0.5, 0.35, 0.2)).astype(np.uint8)
    level = 90 + 50 * labels + rng.normal(0, 16, labels.shape)
    images = level[:, None, None] + rng.normal(0, 25, (count, 12, 12, 3))
    return np.clip(images, 0, 255).astype(np.uint8), labels


def recipe_for(source, **changes):
    tree = {
        "name": "colors",
        "data": {"source": str(source)},
        "augment": ["flip", {"name": "mixup", "p": 0.3}],
        "model": {"name": "simple-cnn", "norm": "batch", "widths": [4, 8, 8], "hidden": 8},
        "loss": {"name": "asymmetric", "gamma_negative": 1},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "schedule": "one-cycle",
        "training": {"epochs": 5, "batch_size": 32, "precision": "fp32", "device": "cpu"},
        "evaluation": {"bootstrap": 100, "stress": "off"},
    }
    for key, value in changes.items():
        tree[key] = {**tree[key], **value} if key in ("data", "training") else value
    return check_recipe(tree)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Images in the layout of ChestMNIST: labels uint8 [N, K]."""
    images, labels = draw(1000)
    path, arrays, start = tmp_path_factory.mktemp("colors") / "colors.npz", {}, 0
    for split, count in (("train", 400), ("val", 350), ("test", 250)):
        arrays |= {f"{split}_images": images[start : start + count], f"{split}_labels": labels[start : start + count]}
        start += count
    np.savez(path, **arrays, classes=np.array(CLASSES))
    return path


@pytest.fixture(scope="module")
def run(source, tmp_path_factory):
    return api.train(recipe_for(source), tmp_path_factory.mktemp("runs") / "run", quiet=True)


@pytest.fixture(scope="module")
def evaluated(run):
    return api.evaluate(run.folder, quiet=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    images, labels = draw(40, seed=1)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:02}.png")
    return sorted(folder.iterdir()), labels


def test_it_learns_and_the_run_says_what_it_is(run, evaluated):
    assert run.results.task == run.environment.data.task == load_model(run.folder).task.name == "multilabel"
    assert run.results.training.monitor == "map"
    assert run.history[-1].val["map"] > max(0.8, run.history[0].val["map"])
    assert evaluated.value("map") > 0.8 and set(evaluated.per_class) == set(CLASSES)
    assert evaluated.per_class["red"].metric("ap").ci95 is not None
    stored = json.loads((run.folder / "results.json").read_text())
    assert stored["test"]["map"] == evaluated.value("map") and stored["test"]["answers"]


def test_scaling_lowers_the_calibration_error_of_a_loss_that_shifts_probabilities(run):
    rows = run.results.val.per_class.values()
    assert np.mean([row.value("ece") for row in rows]) < np.mean([row.value("ece_before") for row in rows])


def test_mistakes_and_metrics_per_class_are_in_the_report(run, evaluated):
    page = (run.folder / "report.html").read_text()
    for text in ("mAP", "Label ranking", "Cutoff", "green", "Present", "left open"):
        assert text in page, text


def test_predictions_are_answers_with_abstentions_per_class(run, files):
    paths, labels = files
    table = api.predict(run.folder, paths, quiet=True)
    assert {"image", "labels", "open", "answer_red", "p_red"} <= set(table.columns)
    said = np.stack([table[f"answer_{name}"] == "present" for name in CLASSES], 1)
    inside = (table["why"] == "").to_numpy()
    assert inside.mean() > 0.5 and (said == (labels == 1))[inside].mean() > 0.8
    first = table[inside].iloc[0]
    assert first["labels"] == (", ".join(name for name in CLASSES if first[f"answer_{name}"] == "present") or "none")
    sure = api.predict(run.folder, paths, max_error=0.25, quiet=True)
    answers = sure[[f"answer_{name}" for name in CLASSES]].to_numpy()
    assert (answers == "not sure").any() and (answers != "not sure").any()
    left = sure[sure["open"] != ""].iloc[0]
    assert set(left["open"].split(", ")) == {name for name in CLASSES if left[f"answer_{name}"] == "not sure"}
    with pytest.raises(RequestError, match="set-coverage"):
        api.predict(run.folder, paths, set_coverage=0.9, quiet=True)


def test_predictions_in_shards_are_the_same(run, files, tmp_path):
    paths, _ = files
    table = api.predict(run.folder, paths, max_error=0.25, quiet=True)
    made = api.predict_in_shards(run.folder, paths, tmp_path / "out", 2, jobs=1, max_error=0.25, quiet=True)
    rows = pd.concat(map(pd.read_parquet, sorted((tmp_path / "out").glob("shard-*"))), ignore_index=True)
    names = ["labels", "open", "why", *(f"answer_{name}" for name in CLASSES)]
    assert rows[names].equals(table[names]) and rows["image"].tolist() == table["image"].tolist()
    np.testing.assert_allclose(rows["p_red"], table["p_red"], atol=1e-6)
    assert (
        made.abstained == (table["open"] != "").sum()
        and made.answers["red"] == (table["answer_red"] == "present").sum()
    )


def test_what_is_guaranteed_on_val_holds_on_test(evaluated):
    rows = [row for row in evaluated.answers if row.max_error == 0.1 and row.guaranteed and row.answered]
    assert rows and {row.answer for row in rows} <= {"present", "absent"}
    answered, wrong = sum(row.answered for row in rows), sum(row.wrong for row in rows)
    assert wrong / answered <= 0.13


def test_predictions_in_the_run_are_those_of_the_metrics(run, evaluated):
    table = pd.read_parquet(run.folder / "predictions.parquet")
    table = table[table["split"] == "test"]
    right = np.stack([table[f"target_{name}"] == table[f"predicted_{name}"] for name in CLASSES], 1)
    assert right.all(1).mean() == pytest.approx(evaluated.value("exact_match"))


def test_runs_are_compared_by_paired_tests(run, evaluated, source, tmp_path):
    slow = recipe_for(source, training={"epochs": 1}, optimizer={"name": "adamw", "lr": 1e-5})
    worse = api.train(slow, tmp_path / "worse", quiet=True)
    api.evaluate(worse.folder, quiet=True)
    for metric in ("map", "exact_match"):
        found = api.compare([run.folder, worse.folder], metric=metric)
        assert found.metric == metric and found.rows[1].contrast.difference.value < 0
        assert found.rows[0].mean == pytest.approx(evaluated.value(metric))
    assert found.rows[1].contrast.p_holm < 0.05


def test_calibration_is_fitted_anew_and_for_another_augmentation(run, source, tmp_path):
    before = load_model(run.folder).trust.labels["none"]
    again = api.calibrate(run.folder, quiet=True)
    assert again.value("ece") == pytest.approx(run.results.val.value("ece"))
    np.testing.assert_allclose(load_model(run.folder).trust.labels["none"].slopes, before.slopes, rtol=1e-4)
    api.calibrate(run.folder, tta="flips", quiet=True)
    assert set(load_model(run.folder).trust.labels) == {"none", "flips"}
    assert api.evaluate(run.folder, data=source, tta="flips", quiet=True).answers is not None


def test_an_interrupted_training_goes_on_to_the_same_weights(run, source, tmp_path, monkeypatch):
    recipe = recipe_for(source, training={"checkpoint_seconds": 0})
    end = Trainer._end_epoch

    def stop(trainer):
        end(trainer)
        if trainer.at.epoch == 3:
            raise Interrupted("stop")

    monkeypatch.setattr(Trainer, "_end_epoch", stop)
    with pytest.raises(Interrupted):
        api.train(recipe, tmp_path / "run", quiet=True)
    monkeypatch.undo()
    resumed = api.resume(tmp_path / "run", quiet=True)
    one, other = (load_model(each.folder).model.state_dict() for each in (run, resumed))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_stress_test_measures_the_ranking(run):
    found = api.evaluate(run.folder, split="val", stress=True, stress_images=12, quiet=True).stress
    assert found.metric_name == "map" and found.value("clean") > found.value("mean")
    assert "mAP" in (run.folder / "report.html").read_text()


def test_what_does_not_fit_is_refused(source, run, tmp_path):
    for changes, says in (
        ({"loss": "dice"}, "binary-cross-entropy"),
        ({"training": {"monitor": "accuracy"}}, "known: map, auc, loss"),
        ({"model": "unet"}, "one class per image"),
        ({"data": {"classes": ["a", "b"]}}, "2 classes"),
    ):
        with pytest.raises(RequestError, match=says):
            api.train(recipe_for(source, **changes), tmp_path / "none", quiet=True)
    with pytest.raises(RequestError, match="any number of labels"):
        api.train(recipe_for("digits"), tmp_path / "none", quiet=True)
    with pytest.raises(RequestError, match="classification"):
        api.evaluate(run.folder, quiet=True, classes=["red", "green"])
    with pytest.raises(DataError, match="labels"):
        api.evaluate(run.folder, data="digits", quiet=True)
    with pytest.raises(
        RequestError, match="learns from the one class that the network is surest of; name labeled images"
    ):
        api.adapt(run.folder, out=tmp_path / "none", unlabeled=str(source), quiet=True)
    with pytest.raises(RequestError, match="classification"):
        api.adapt(run.folder, str(source), tmp_path / "none", classes=["red", "blue"], quiet=True)
    assert not (tmp_path / "none").exists()


def test_an_ensemble_is_the_mean_of_the_probabilities_of_each_label(source, run, files, tmp_path):
    other = api.train(recipe_for(source, seed=1, training={"epochs": 2}), tmp_path / "other", quiet=True)
    raw = [load_model(each.folder, "cpu")._raw(torch.from_numpy(draw(16, seed=3)[0]), "none") for each in (run, other)]
    joined = api.ensemble([run.folder, other.folder], out=tmp_path / "joined", quiet=True)
    found = load_model(joined.folder, "cpu")._raw(torch.from_numpy(draw(16, seed=3)[0]), "none")
    np.testing.assert_allclose(found, np.mean(raw, 0), atol=1e-5)
    assert joined.results.ensemble.gain is not None and joined.results.val.answers
    assert "mAP" in (joined.folder / "report.html").read_text()
    weighted = api.ensemble([run.folder, other.folder], "weighted", tmp_path / "weighted", quiet=True)
    assert sum(each.weight for each in weighted.results.ensemble.members) == pytest.approx(1)
    with pytest.raises(RequestError, match="cannot be joined by stacking; known: soft"):
        api.ensemble([run.folder, other.folder], "stacking", tmp_path / "none", quiet=True)


def test_cross_entropy_and_focal_stand_for_their_binary_forms(source, tmp_path):
    for loss in ("cross-entropy", "focal"):
        run = api.train(recipe_for(source, loss=loss, training={"epochs": 1}), tmp_path / loss, quiet=True)
        assert run.results.val.value("map") > 0.2


def test_the_server_answers_as_predict_does(run, files):
    model = open_model(str(run.folder), "cpu")
    paths = files[0][:6]
    images = [model.decode(path.name, path.read_bytes()) for path in paths]
    for wanted in (None, 0.25):
        table = api.predict(run.folder, paths, max_error=wanted, quiet=True)
        rules = model.rules(Asked(max_error=wanted), False)
        for found, row in zip(
            model.predict([p.name for p in paths], images, [rules] * 6), table.to_dict("records"), strict=True
        ):
            assert found.row.answer == row["labels"] and found.row.why == row["why"]
            assert found.row.answers == {name: row[f"answer_{name}"] for name in CLASSES}
            assert found.row.probabilities["red"] == pytest.approx(row["p_red"], abs=1e-5)
    assert model.overlay(images[0]).ndim == 3
    with pytest.raises(RequestError, match="coverage"):
        model.rules(Asked(coverage=0.9), False)


def test_each_label_is_explained(run, files, tmp_path):
    found = api.explain(run.folder, files[0][:2], tmp_path / "maps", of="green", quiet=True)
    assert set(found["explained"]) == {"green"} and found["overlay"].notna().all()
    assert (found["confidence"] <= 1).all()


@pytest.fixture(scope="module")
def package(run, tmp_path_factory):
    pytest.importorskip("onnx")
    return api.export(run.folder, tmp_path_factory.mktemp("labels") / "package", quiet=True).folder


def test_a_package_answers_each_label_without_torch(run, package, files):
    paths = files[0][:40]
    script = [sys.executable, str(package / "predict.py"), *map(str, paths), "--quiet"]
    for wanted, more in ((None, ()), (0.1, ("--max-error", "0.1"))):
        done = subprocess.run(
            [*script, *more], capture_output=True, text=True, check=True, env={"OMP_NUM_THREADS": "1"}
        )
        found = pd.read_csv(StringIO(done.stdout), keep_default_na=False)
        known = api.predict(run.folder, paths, max_error=wanted, quiet=True)
        assert list(found.columns) == list(known.columns)
        assert found["labels"].tolist() == known["labels"].tolist() and found["open"].tolist() == known["open"].tolist()
        for name in CLASSES:
            assert found[f"answer_{name}"].tolist() == known[f"answer_{name}"].tolist()
            np.testing.assert_allclose(found[f"p_{name}"], known[f"p_{name}"], atol=1e-4)


def test_a_package_is_verified_judged_and_served(run, evaluated, package, files):
    assert verify(package).images == 32
    judged = api.evaluate(package, data=run.recipe.data.source, quiet=True)
    assert judged.value("map") == pytest.approx(evaluated.value("map"), abs=0.01)
    model, paths = open_model(str(package)), files[0][:6]
    assert model.max_errors and model.unshown
    images = [model.decode(path.name, path.read_bytes()) for path in paths]
    rules = model.rules(Asked(max_error=0.1), False)
    table = api.predict(package, paths, max_error=0.1, quiet=True).to_dict("records")
    for found, row in zip(model.predict([p.name for p in paths], images, [rules] * 6), table, strict=True):
        assert found.row.answers == {name: row[f"answer_{name}"] for name in CLASSES}
    with pytest.raises(RequestError, match=r"not 0\.3"):
        model.rules(Asked(max_error=0.3), False)


def test_what_val_guarantees_is_said_with_the_labels_that_it_does_not_guarantee():
    nothing = np.full((3, 2), -np.inf)
    (said,) = guarantees(CLASSES, nothing, 0.05)
    assert said.startswith("val guarantees no error rate of 5 % for any label, so all are left open")
    first, second = guarantees(CLASSES, np.array([[0.1, 0.2], [0.1, -np.inf], [0.1, -np.inf]]), 0.05)
    assert "at most 5 % of the answers 'present' are wrong" in first
    assert second.startswith(
        "val guarantees no error rate of 5 % for the answer 'present' of green, blue, which is not given"
    )


def test_a_package_of_labels_gives_no_prediction_sets(package):
    assert offline(package, ["x.png", "--set-coverage", "0.9"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_lower_precision_is_fitted_anew_and_measured_by_map(run, package, tmp_path, precision):
    folder = api.export(run.folder, tmp_path / "package", precision=precision, quiet=True).folder
    manifest = Manifest.read(folder / MANIFEST)
    of_run, single, lower = manifest.measured
    assert of_run.map == pytest.approx(run.results.val.value("map")) == pytest.approx(single.map, abs=1e-3)
    assert of_run.nll == pytest.approx(run.results.val.value("nll"))
    assert of_run.ece == pytest.approx(run.results.val.value("ece")) and of_run.accuracy is None
    assert lower.change == lower.map - of_run.map and abs(lower.change) < 0.02 and lower.bytes < single.bytes
    assert lower.change_ci95[0] <= lower.change <= lower.change_ci95[1]
    reference, val = open_package(folder).trust.labels["none"], load_dataset(run.recipe.data).split("val")
    found, before = (Package(each).run(val.images) for each in (folder, package))
    assert not np.array_equal(found["raw"], before["raw"])
    np.testing.assert_allclose(found["raw"], reference.raw, atol=1e-5)  # fitted on what it answers itself
    np.testing.assert_allclose(found["probabilities"], reference.scaled(found["raw"]), atol=1e-5)
    assert np.array_equal(found["labels"], found["probabilities"] >= Package(folder).cutoffs)
    assert verify(folder).images == 32 and "| | mAP on val |" in (folder / "README.md").read_text()
    judged = api.evaluate(folder, data=run.recipe.data.source, split="val", keep_seen=True, quiet=True)
    assert judged.value("map") == pytest.approx(lower.map, abs=1e-3)
    arrays = dict(np.load(folder / "tests" / "vectors.npz"))
    wrong = Differences()
    expected = {**arrays, "labels": ~arrays["labels"]}
    compare_outputs(Package(folder), arrays["images"], expected, [""] * len(arrays["images"]), 8, wrong)
    assert list(wrong.wrong) == ["other labels"]


def test_a_lower_precision_whose_map_is_worse_is_refused(capsys):
    worse = Measured("fp16", None, -0.03, (-0.04, -0.02), 0.3, 0.01, 1000, 100.0, map=0.9)
    said = (
        r"in fp16, the mAP on val is 90.00 %, which is 3.00 points worse than that of the run \(95 %: by 2.00 or more\)"
    )
    with pytest.raises(PetriscopeError, match=said):
        check_cost(worse, "fp16", force=False)
    check_cost(worse, "fp16", force=True)
    assert "exported all the same" in capsys.readouterr().err
    check_cost(replace(worse, change_ci95=(-0.04, -0.004)), "fp16", force=False)


def test_guarantees_are_withdrawn_where_images_are_not_like_those_of_val(run, files, tmp_path):
    images, _ = draw(60, seed=2)
    for index, image in enumerate(images):
        Image.fromarray((image // 3 + 150).astype(np.uint8)).save(tmp_path / f"{index}.png")
    table = api.predict(run.folder, sorted(tmp_path.glob("*.png")), max_error=0.25, quiet=True)
    assert (table["open"] == ", ".join(CLASSES)).all() and table["why"].str.contains("guarantee withdrawn").all()
    answered = api.predict(
        run.folder, sorted(tmp_path.glob("*.png")), max_error=0.25, without_guarantee=True, quiet=True
    )
    assert answered["why"].str.contains("without guarantee").all()
    like = api.evaluate(run.folder, quiet=True).shift
    assert like.p is not None and not like.withdrawn


def test_sets_of_images_are_compared_with_val_as_it_is(run):
    """An estimate of the mix of labels would give false alarms, see docs/log.md."""
    assert not load_model(run.folder).trust.likeness.target.any()
    images, _ = draw(600, seed=4)
    for start in range(0, 600, 100):
        table = api.predict(run.folder, images[start : start + 100], max_error=0.25, quiet=True)
        assert not table["why"].str.contains("guarantee withdrawn").any()


def elsewhere(count, seed):
    """The same at another place, where images are darker, and each channel has half of another."""
    images, labels = draw(count, seed)
    mixed = images @ np.array([[0.5, 0, 0.5], [0.5, 0.5, 0], [0, 0.5, 0.5]])
    return (0.7 * mixed).astype(np.uint8), labels


@pytest.fixture(scope="module")
def adapted(run, tmp_path_factory):
    """The run adapted to a folder with a table of its labels, and other images of that place."""
    folder = tmp_path_factory.mktemp("elsewhere")
    images, labels = elsewhere(80, 5)
    rows = ["image," + ",".join(CLASSES)]
    for number, (image, has) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image).save(folder / f"{number:02}.png")
        rows.append(f"{number:02}.png," + ",".join(map(str, has)))
    (folder / "labels.csv").write_text("\n".join(rows))
    images, labels = elsewhere(200, 6)
    np.savez(folder / "test.npz", test_images=images, test_labels=labels, classes=np.array(CLASSES))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adaptation, "STEPS", 10)
        patch.setattr("petriscope.experiments.adapt.SETTINGS", (adaptation.Setting("all", 1e-2, 4),))
        more = {"unlabeled": folder / "test.npz", "suggest": 5}
        return api.adapt(run.folder, folder / "labels.csv", folder / "run", quiet=True, **more), folder / "test.npz"


def test_a_run_is_adapted_to_another_place(run, adapted):
    made, test = adapted
    found = made.results.adaptation
    assert (found.labeled, found.held_out, found.folds, len(found.tried)) == (80, 80, 5, 4)
    assert found.after.value("nll") < found.before.value("nll") and found.after.per_class["red"].value("ap") is not None
    assert found.tried[0].map == pytest.approx(found.after.value("map"), abs=0.01) and found.tried[0].accuracy is None
    before, after = (api.evaluate(each.folder, test, quiet=True) for each in (run, made))
    assert after.value("map") > before.value("map") + 0.15 and found.setting.startswith("all")
    assert found.home_before.value == pytest.approx(run.results.val.value("map"))
    assert found.home_after.value == made.results.val.value("map")
    page = (made.folder / "report.html").read_text()
    assert "held out in turn is" in page and "the cutoff and the thresholds of each label were fitted" in page
    suggested = pd.read_csv(made.folder / "suggested.csv", keep_default_na=False)
    assert len(suggested) == 5 and set(", ".join(suggested["predicted"]).split(", ")) <= {*CLASSES, "none"}


def test_what_is_fitted_on_held_out_labels_is_of_networks_that_did_not_learn_from_them(adapted):
    predictor = load_model(adapted[0].folder)
    reference = predictor.trust.labels["none"]
    assert reference.target.shape == (80, 3) and reference.target.dtype == np.uint8
    seen = predictor.predict(elsewhere(80, 5)[0]).raw
    assert not np.allclose(np.sort(seen, 0), np.sort(reference.raw, 0), atol=1e-3)
    assert len(predictor.trust.likeness.target) == 80 and predictor.trust.likeness.center is not None
    table = api.predict(adapted[0].folder, elsewhere(40, 7)[0], max_error=0.4, quiet=True)
    assert not table["why"].str.contains("withdrawn").any() and (table["answer_red"] != "not sure").any()
