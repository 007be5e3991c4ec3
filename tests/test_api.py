"""Runs as a user has them: the files of a folder, metrics that agree with one another, errors that lose nothing."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from petriscope import api
from petriscope.core.errors import DataError, PetriscopeError, RequestError
from petriscope.core.recipe import load_recipe
from petriscope.data import load_dataset
from petriscope.inference.predictor import load_model
from petriscope.run.folder import open_run


@pytest.fixture(scope="module")
def module_tmp(tmp_path_factory):
    return tmp_path_factory.mktemp("api")


@pytest.fixture
def trained(tiny_recipe, tiny_npz, module_tmp):
    """A run folder of this test's own, trained once for all of them."""
    kept = module_tmp / "kept"
    if not kept.exists():
        shutil.copy(tiny_npz, module_tmp / "tiny.npz")
        source = {"source": str(module_tmp / "tiny.npz")}
        recipe = tiny_recipe(data=source, training={"epochs": 2}, evaluation={"stress": "auto"})
        api.train(recipe, kept, quiet=True)
    folder = tiny_npz.parent / "run"
    shutil.copytree(kept, folder)
    return open_run(folder)


def images_of(npz, split):
    with np.load(npz) as arrays:
        return arrays[f"{split}_images"], arrays[f"{split}_labels"].ravel()


def test_a_run_folder_has_its_files(trained):
    names = {path.name for path in trained.folder.iterdir()}
    assert names == {
        "recipe.yaml",
        "environment.json",
        "splits.parquet",
        "metrics.jsonl",
        "model.safetensors",
        ".lock",
        "results.json",
        "predictions.parquet",
        "gallery",
        "report.html",
    }
    assert [line.epoch for line in trained.history] == [1, 2]
    results = trained.results
    assert trained.finished and results.cost is not None and set(results.evaluated) == {"val"}
    assert set(results.stress) == {"val"}
    assert "test" not in set(trained.predictions["split"])
    data = trained.environment.data
    assert data.splits["train"].images == 120 and data.splits["train"].per_class == [60, 60]
    assert data.task == results.task == "classification"
    assert trained.gallery["augmented"].dtype == np.uint8
    assert trained.gallery["augmented"].shape[0] == 2


def test_files_are_readable_by_others_as_the_umask_says(trained):
    modes = {path.name: path.stat().st_mode & 0o777 for path in trained.folder.iterdir() if path.is_file()}
    assert len(set(modes.values())) == 1, modes


def test_the_model_file_alone_predicts_as_the_run_did(trained, tiny_npz, tmp_path):
    alone = tmp_path / "elsewhere.safetensors"
    shutil.copy(trained.model, alone)
    images, _ = images_of(tiny_npz, "val")
    probabilities = load_model(alone).probabilities(images)
    table = trained.predictions
    np.testing.assert_allclose(probabilities, table[["p_0", "p_1"]].to_numpy(), atol=1e-5)
    with safe_open(alone, framework="pt") as handle:
        facts = json.loads(handle.metadata()["petriscope"])
    assert facts["classes"] == ["0", "1"]
    assert facts["task"] == "classification"
    assert facts["recipe"]["name"] == "tiny"
    assert len(facts["mean"]) == len(facts["std"]) == 3


def test_evaluate_reads_test_and_adds_it_to_the_run(trained):
    result = api.evaluate(trained.folder, quiet=True)
    assert result.n == 40
    assert trained.results.test == result
    table = trained.predictions
    rows = table[table["split"] == "test"]
    assert (rows["target"] == rows["predicted"]).mean() == pytest.approx(result.value("accuracy"))
    assert len(table) == 80
    assert "test" in (trained.folder / "report.html").read_text()
    assert api.evaluate(trained.folder, quiet=True) == result
    assert len(trained.predictions) == 80


def test_evaluate_has_what_the_contract_names(trained):
    tree = api.evaluate(trained.folder, quiet=True).as_json()
    scalars = {"n", "accuracy", "accuracy_ci95", "balanced_accuracy", "macro_f1", "auc", "nll", "ece"}
    assert scalars | {"per_class", "confusion", "selective", "ood"} <= set(tree)
    assert json.loads((trained.folder / "results.json").read_text())["test"] == tree
    json.dumps(tree, allow_nan=False)


def test_training_never_reads_the_test_images(tiny_recipe, tiny_npz, tmp_path, monkeypatch):
    from petriscope.data import load_dataset as real

    def without_test(section):
        dataset = real(section)
        object.__setattr__(dataset.test, "pixels", np.zeros_like(dataset.test.pixels))
        return dataset

    first = api.train(tiny_recipe(training={"epochs": 1}), tmp_path / "a", quiet=True)
    monkeypatch.setattr("petriscope.experiments.train.load_dataset", without_test)
    second = api.train(tiny_recipe(training={"epochs": 1}), tmp_path / "b", quiet=True)
    one, other = load_file(first.model), load_file(second.model)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert first.results.val == second.results.val


class TestOtherData:
    def folder(self, root, images, labels, names=("0", "1")):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = root / names[label] / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        return root

    @pytest.fixture(autouse=True)
    def own_cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PETRISCOPE_CACHE", str(tmp_path / "cache"))

    def test_a_pile_is_evaluated_whole(self, trained, tiny_npz, tmp_path):
        expected = api.evaluate(trained.folder, quiet=True)
        source = self.folder(tmp_path / "pile", *images_of(tiny_npz, "test"))
        before = (trained.folder / "results.json").read_text()
        result = api.evaluate(trained.folder, str(source), quiet=True)
        assert result.value("accuracy") == expected.value("accuracy")
        assert result.value("nll") == pytest.approx(expected.value("nll"), rel=1e-4)
        assert (trained.folder / "results.json").read_text() == before

    def test_a_test_split_alone_will_do(self, trained, tiny_npz, tmp_path):
        images, labels = images_of(tiny_npz, "test")
        np.savez(tmp_path / "only.npz", test_images=images, test_labels=labels)
        assert api.evaluate(trained.folder, str(tmp_path / "only.npz"), quiet=True).n == 40
        with pytest.raises(DataError, match="no val split"):
            api.evaluate(trained.folder, str(tmp_path / "only.npz"), split="val", quiet=True)

    def test_some_of_the_classes_will_do_and_they_are_found_by_name(self, trained, tiny_npz, tmp_path):
        images, labels = images_of(tiny_npz, "test")
        source = self.folder(tmp_path / "ones", images[labels == 1], labels[labels == 1])
        result = api.evaluate(trained.folder, str(source), quiet=True)
        assert result.per_class["0"].n == 0
        assert result.per_class["1"].n == 20

    def test_an_unknown_class_is_an_error(self, trained, tiny_npz, tmp_path):
        source = self.folder(tmp_path / "cats", *images_of(tiny_npz, "test"), names=("0", "cat"))
        with pytest.raises(DataError, match="'cat'"):
            api.evaluate(trained.folder, str(source), quiet=True)

    def test_predict_names_classes_and_what_it_could_not_read(self, trained, tiny_npz, tmp_path):
        images, labels = images_of(tiny_npz, "test")
        source = self.folder(tmp_path / "new", images, labels)
        (source / "0" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
        table = api.predict(trained.folder, [source], quiet=True)
        assert len(table) == 41
        assert table["error"].notna().sum() == 1
        assert "broken.png" in table["error"].dropna().iloc[0]
        good = table[table["error"].isna()]
        expected = api.evaluate(trained.folder, quiet=True).value("accuracy")
        assert (good["predicted"] == good["image"].str.split("/").str[-2]).mean() == pytest.approx(expected)
        assert good[["p_0", "p_1"]].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)

    def test_predict_resizes_and_takes_gray(self, trained, tmp_path):
        Image.fromarray(np.full((40, 30), 200, np.uint8)).save(tmp_path / "gray.png")
        assert api.predict(trained.folder, [tmp_path / "gray.png"], quiet=True)["predicted"].notna().all()

    def test_predict_of_nothing_is_an_error(self, trained, tmp_path):
        with pytest.raises(RequestError, match="no such image"):
            api.predict(trained.folder, [tmp_path / "nowhere.png"])
        (tmp_path / "empty").mkdir()
        with pytest.raises(RequestError, match="no images"):
            api.predict(trained.folder, [tmp_path / "empty"])


class TestRefusals:
    @pytest.mark.parametrize(
        "change",
        [
            {"model": {"name": "simple-cnn", "nrom": "batch"}},
            {"augment": ["flipp"]},
            {"optimizer": {"name": "adamw", "lr": -1}},
            {"schedule": "cosin"},
            {"loss": {"name": "cross-entropy", "class_weights": [1, 2, 3]}},
            {"training": {"device": "quantum"}},
            {"data": {"source": "/nowhere/at/all.npz"}},
        ],
    )
    def test_a_wrong_request_makes_no_folder(self, change, tiny_recipe, tmp_path):
        with pytest.raises(RequestError):
            api.train(tiny_recipe(**change), tmp_path / "sub" / "run", quiet=True)
        assert not (tmp_path / "sub").exists()

    def test_an_existing_folder_is_refused_and_left(self, trained, tiny_recipe):
        before = sorted(p.name for p in trained.folder.iterdir())
        with pytest.raises(RequestError, match="exists"):
            api.train(tiny_recipe(), trained.folder, quiet=True)
        assert sorted(p.name for p in trained.folder.iterdir()) == before

    def test_a_full_disk_leaves_no_folder(self, tiny_recipe, tmp_path, monkeypatch):
        def full(*args, **kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("petriscope.run.folder.write_text", full)
        with pytest.raises(PetriscopeError, match="no space left"):
            api.train(tiny_recipe(), tmp_path / "sub" / "run", quiet=True)
        assert not list((tmp_path / "sub").iterdir())

    def test_no_test_split_is_said(self, tiny_recipe, tiny_npz, tmp_path):
        with np.load(tiny_npz) as arrays:
            kept = {k: v for k, v in arrays.items() if not k.startswith("test")}
        np.savez(tiny_npz, **kept)
        run = api.train(tiny_recipe(training={"epochs": 1}), tmp_path / "run", quiet=True)
        with pytest.raises(DataError, match=r"no test split; it has: train \(120\), val \(40\)"):
            api.evaluate(run.folder, quiet=True)

    @pytest.mark.parametrize("damage", ["truncated", "foreign", "missing"])
    def test_a_damaged_model_file_is_an_error(self, damage, trained):
        if damage == "truncated":
            trained.model.write_bytes(trained.model.read_bytes()[:-10])
        elif damage == "foreign":
            from safetensors.torch import save_file

            save_file({"w": torch.ones(1)}, trained.model)
        else:
            trained.model.unlink()
        with pytest.raises(RequestError, match=r"model|damaged"):
            api.evaluate(trained.folder, quiet=True)


def test_without_val_the_last_weights_are_kept(tiny_recipe, tiny_npz, tmp_path):
    recipe = tiny_recipe(
        data={"source": "digits", "val_fraction": 0.0, "size": 8}, training={"epochs": 1, "batch_size": 256}
    )
    run = api.train(recipe, tmp_path / "run", quiet=True)
    assert run.results.training.kept == "last"
    assert run.results.val is None
    assert (run.folder / "report.html").is_file()


def test_memory_mapped_and_resident_training_end_the_same(tiny_recipe, tiny_npz, tmp_path, monkeypatch):
    monkeypatch.setenv("PETRISCOPE_CACHE", str(tmp_path / "cache"))
    source = {"source": str(tiny_npz)}
    resident = api.train(tiny_recipe(data=source), tmp_path / "a", quiet=True)
    mapped = api.train(tiny_recipe(data={**source, "memory": "mapped"}), tmp_path / "b", quiet=True)
    pd.testing.assert_frame_equal(resident.predictions, mapped.predictions)


def test_a_known_name_stays_one_where_a_folder_is_called_so(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    (tmp_path / "synthetic-smear:60").mkdir()
    for source in ("digits", "synthetic-smear:60"):
        recipe = tiny_recipe(data={"source": source, "size": 12}, training={"epochs": 1})
        run = api.train(recipe, tmp_path / f"run-{source[:3]}", quiet=True)
        assert run.recipe.data.source == source
        assert api.evaluate(run.folder, quiet=True).n > 0


def test_training_ends_with_a_stress_test_of_val_unless_turned_off(trained, tiny_recipe, tmp_path):
    stress = trained.results.stress["val"]
    assert stress.n == stress.of == 40
    assert stress.corruptions["translation"].seen  # the recipe shifts images
    assert not stress.corruptions["bubble"].seen
    assert trained.gallery["disturbed"].shape[1:] == (4, 12, 12, 3)
    recipe = tiny_recipe(training={"epochs": 1}, evaluation={"stress": "off"})
    plain = api.train(recipe, tmp_path / "plain", quiet=True)
    assert plain.results.stress == {} and "disturbed" not in plain.gallery
    assert (plain.folder / "report.html").is_file()


def test_crops_are_evaluated_calibrated_and_named_on_the_page(trained, capsys):
    image = np.zeros(trained.environment.data.shape, np.uint8)
    said = "note: nothing was fitted on val for test-time augmentation crops, so the temperature of none is used"
    api.predict(trained, image, tta="crops")
    assert said in capsys.readouterr().err
    result = api.evaluate(trained.folder, tta="crops", quiet=True)
    assert result.tta == trained.results.test.tta == "crops"
    assert "--tta crops" in (trained.folder / "report.html").read_text()
    api.calibrate(trained.folder, tta="crops", quiet=True)
    assert set(load_model(trained.model).trust.references) == {"none", "crops"}
    api.predict(trained, image, tta="crops")
    assert said not in capsys.readouterr().err


def test_recalibration_writes_another_model_file(trained, tiny_npz, tmp_path):
    before = trained.model.read_bytes()
    result, written = api.recalibrate(trained.folder, str(tiny_npz), split="test", quiet=True)
    assert result.n == 40 and written == trained.folder / "model-tiny.safetensors"
    assert trained.model.read_bytes() == before
    assert load_model(written).trust.references["none"] != load_model(trained.model).trust.references["none"]
    with pytest.raises(RequestError, match="exists"):
        api.recalibrate(trained.folder, str(tiny_npz), quiet=True)


def test_the_stress_test_measures_whether_guarantees_hold(trained):
    stress, val = trained.results.stress["val"], trained.results.val
    guarantees = stress.guarantees
    # All val images are in it, so the clean ones are in their sets as often as in val.
    sets = next(row for row in val.conformal if row.method == "class" and row.level == guarantees.level)
    assert guarantees.clean.value("held") == pytest.approx(sets.coverage)
    assert set(guarantees.corruptions) == set(stress.corruptions)
    assert 0 <= guarantees.together.value("answered") <= 1 and 0 < guarantees.together.value("held") <= 1
    said = (trained.folder / "report.html").read_text(encoding="utf-8")
    assert "at once, of different kinds" in said and "of the sets contain the true class" in said


def test_evaluate_with_stress_adds_it_to_the_run(trained):
    result = api.evaluate(trained.folder, quiet=True, stress=True, stress_images=16)
    assert result.stress.n == 16
    assert result.stress.split == "test"
    assert result.stress.value("clean") == pytest.approx(result.value("balanced_accuracy"), abs=0.3)
    assert trained.results.stress["test"] == result.stress
    assert trained.results.test.stress is None
    assert set(trained.results.stress) == {"val", "test"}
    with pytest.raises(RequestError, match="at least one"):
        api.evaluate(trained.folder, quiet=True, stress=True, stress_images=0)


def test_stress_on_another_source_leaves_the_run_alone(trained, tmp_path):
    images = np.random.default_rng(5).integers(0, 256, (10, 12, 12, 3), dtype=np.uint8)
    np.savez(tmp_path / "other.npz", test_images=images, test_labels=np.arange(10) % 2)
    before = trained.results
    result = api.evaluate(trained.folder, str(tmp_path / "other.npz"), quiet=True, stress=True, stress_images=8)
    assert result.stress.n == 8
    assert trained.results == before


def test_predictions_go_to_a_file_if_asked(trained, tmp_path):
    Image.fromarray(np.full((12, 12, 3), 240, np.uint8)).save(tmp_path / "a.png")
    out = tmp_path / "table.csv"
    table = api.predict(trained.folder, [tmp_path / "a.png"], set_coverage=0.9, out=out, quiet=True)
    assert "set" in table
    assert pd.read_csv(out, dtype={"predicted": str})["predicted"].tolist() == table["predicted"].tolist()


def test_the_package_gives_the_functions_that_it_names():
    import petriscope as p

    assert all(getattr(p, name) is not None for name in p.__all__)
    with pytest.raises(AttributeError):
        p.nonsense  # noqa: B018


def test_a_run_its_folder_and_text_are_the_same_to_every_function(trained, tmp_path):
    image = tmp_path / "one.png"
    Image.fromarray(np.full((12, 12, 3), 240, np.uint8)).save(image)
    tables = [
        api.predict(run, images, quiet=True)
        for run in (trained, trained.folder, str(trained.folder))
        for images in (image, str(image), [image])
    ]
    assert all(table.equals(tables[0]) for table in tables) and len(tables[0]) == 1
    assert load_model(str(trained.folder)).classes == load_model(trained).classes
    assert api.evaluate(trained, split="val", quiet=True) == api.evaluate(str(trained.folder), split="val", quiet=True)
    assert api.compare([trained]).rows[0].values == api.compare([str(trained.folder)]).rows[0].values


def test_threads_that_share_a_predictor_get_their_own_answers(trained):
    predictor = load_model(trained)
    images = np.random.default_rng(0).integers(0, 256, (60, 12, 12, 3), dtype=np.uint8)
    batches = [images[i : i + 1 + i % 3] for i in range(len(images))]
    alone = [predictor.predict(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        shared = list(pool.map(predictor.predict, batches))
    for one, other in zip(alone, shared, strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-6)
        np.testing.assert_allclose(one.ood, other.ood, rtol=1e-4)


def test_a_source_can_be_named_alone(tiny_npz):
    assert load_dataset(tiny_npz).fingerprint == load_dataset(str(tiny_npz)).fingerprint
    assert load_recipe("demo", data={"source": tiny_npz}).data.source == str(tiny_npz)
