"""From training to answers and silence, as a user has them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from petriscope import api, cli
from petriscope.core.errors import DataError, RequestError
from petriscope.inference.predictor import Answers, load_model, save_trust
from petriscope.metrics.selective import Threshold
from petriscope.models.weights import read_weights
from petriscope.report import write_report
from petriscope.run.folder import open_run
from petriscope.trust.abstention import NO_CLASS, NOT_SURE, Answering
from petriscope.trust.state import Trust
from petriscope.trust.temperature import scale


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("answering")


@pytest.fixture
def trained(tiny_recipe, tmp_path, kept):
    """A run with 600 images of val, enough to promise 2 % errors, trained once for all tests."""
    if not (kept / "run").exists():
        rng = np.random.default_rng(0)
        arrays = {}
        for split, count in (("train", 120), ("val", 600), ("test", 40)):
            labels = np.arange(count) % 2
            images = rng.integers(0, 120, (count, 12, 12, 3)) + labels[:, None, None, None] * 130
            arrays[f"{split}_images"] = images.astype(np.uint8)
            arrays[f"{split}_labels"] = labels[:, None].astype(np.uint8)
        np.savez(kept / "data.npz", **arrays)
        recipe = tiny_recipe(data={"source": str(kept / "data.npz")})
        api.train(recipe, kept / "run", quiet=True)
    shutil.copytree(kept / "run", tmp_path / "run")
    return open_run(tmp_path / "run")


@pytest.fixture
def some_images(trained, tmp_path):
    """Four of test, and a blank green one."""
    folder = tmp_path / "images"
    folder.mkdir()
    with np.load(trained.recipe.data.source) as arrays:
        for i in range(4):
            Image.fromarray(arrays["test_images"][i]).save(folder / f"{i}.png")
    Image.new("RGB", (12, 12), (10, 230, 10)).save(folder / "green.png")
    return folder


def stripped(run):
    """As a run that was trained before anything was kept of val."""
    with safe_open(run.model, framework="pt") as handle:
        facts = json.loads(handle.metadata()["petriscope"])
        tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
    del facts["trust"]
    save_file(tensors, run.model, metadata={"petriscope": json.dumps(facts)})
    return run


def test_training_fits_on_val_and_everyone_applies_it(trained):
    predictor = load_model(trained.model)
    reference = predictor.trust.references["none"]
    assert reference.temperature != 1 and len(reference.doubt) == 600
    with np.load(trained.recipe.data.source) as arrays:
        images = arrays["test_images"]
    answers = predictor.answer(images)
    np.testing.assert_allclose(answers.probabilities, scale(answers.raw, reference.temperature), atol=1e-6)
    np.testing.assert_allclose(predictor.probabilities(images), answers.probabilities, atol=1e-6)
    result = api.evaluate(trained.folder, quiet=True)
    rows = trained.predictions.query("split == 'test'")
    np.testing.assert_allclose(rows[["p_0", "p_1"]].to_numpy(), answers.probabilities, atol=1e-5)
    assert result["calibration"]["temperature"] == reference.temperature
    assert result["nll"] == pytest.approx(result["calibration"]["after"]["nll"], rel=1e-3)
    assert result["ood"]["share"] == (answers.outlier > 1).mean()


def test_val_is_fitted_as_it_is_evaluated(trained):
    reference = load_model(trained.model).trust.references["none"]
    rows = trained.predictions.query("split == 'val'")
    np.testing.assert_allclose(1 - rows["confidence"], reference.doubt, atol=1e-6)
    assert (rows["target"] == rows["predicted"]).tolist() == reference.right.astype(bool).tolist()


def test_averaging_over_views_has_a_temperature_of_its_own(trained):
    recipes_own = load_model(trained.model).trust.references["none"].temperature
    result = api.evaluate(trained.folder, tta="flips", quiet=True)
    assert result["selective"] is None and result["calibration"]["temperature"] == recipes_own
    before = trained.results["val"]
    api.calibrate(trained.folder, tta="flips", quiet=True)
    assert trained.results["val"] == before  # which are of the recipe's views
    predictor = load_model(trained.model)
    assert set(predictor.trust.references) == {"none", "flips"}
    own = predictor.trust.references["flips"].temperature
    assert own != recipes_own
    result = api.evaluate(trained.folder, tta="flips", quiet=True)
    assert result["selective"] is not None and result["calibration"]["temperature"] == own
    with np.load(trained.recipe.data.source) as arrays:
        answers = predictor.answer(arrays["test_images"], "flips")
    logs = np.log(answers.raw.astype(float)) / own
    np.testing.assert_allclose(np.exp(logs) / np.exp(logs).sum(1, keepdims=True), answers.probabilities, atol=1e-5)


def test_an_older_model_file_answers_as_before_and_can_be_calibrated(trained, some_images):
    weights = trained.model.read_bytes()
    run = stripped(trained)
    predictor = load_model(run.model)
    assert predictor.trust.references == {} and predictor.trust.detector is None
    table = api.predict(run.folder, [some_images], quiet=True)
    assert table["answer"].tolist() == table["predicted"].tolist()
    with pytest.raises(RequestError, match="petriscope calibrate"):
        api.predict(run.folder, [some_images], max_error=0.1, quiet=True)
    assert api.evaluate(run.folder, quiet=True)["conformal"] is None
    api.calibrate(run.folder, quiet=True)
    assert run.model.read_bytes() == weights


@pytest.fixture
def elsewhere(trained, tmp_path):
    """Another lamp and, of labels, one in 50 wrong: 600 images of val and 600 of test."""
    rng = np.random.default_rng(1)
    with np.load(trained.recipe.data.source) as arrays:
        some_images, labels = arrays["val_images"] // 2 + 60, arrays["val_labels"]
    arrays = {}
    for split in ("val", "test"):
        wrong = rng.permutation(600) < 12
        arrays |= {f"{split}_images": some_images, f"{split}_labels": np.where(wrong[:, None], 1 - labels, labels)}
    np.savez(tmp_path / "elsewhere.npz", **arrays)
    return str(tmp_path / "elsewhere.npz")


def test_images_from_elsewhere_get_a_model_that_promises_for_them(trained, elsewhere):
    before, own = trained.model.read_bytes(), trained.results
    strange = api.evaluate(trained.folder, data=elsewhere, quiet=True)
    assert strange["ood"]["share"] > 0.9
    metrics, model = api.recalibrate(trained.folder, elsewhere, quiet=True)
    assert model == trained.folder / "model-elsewhere.safetensors" and metrics["split"] == "val"
    assert trained.model.read_bytes() == before and trained.results == own
    fitted = api.evaluate(model, data=elsewhere, quiet=True)
    assert fitted["accuracy"] == strange["accuracy"] and fitted["ood"]["share"] <= 0.01
    promise = next(row for row in fitted["selective"] if row["max_error"] == 0.05)
    assert promise["coverage"] > 0.9 and promise["error"] <= 0.05
    assert fitted["nll"] < strange["nll"]
    table = api.predict(model, [elsewhere_image(elsewhere)], max_error=0.05, sets=0.9, quiet=True)
    assert table["answer"].item() == table["predicted"].item()

    with pytest.raises(RequestError, match=r"model-elsewhere.safetensors exists; choose another --out"):
        api.recalibrate(trained.folder, elsewhere, quiet=True)
    again, other = api.recalibrate(model, elsewhere, model.with_name("other.safetensors"), "test", "flips", quiet=True)
    assert again["split"] == "test" and set(load_model(other).trust.references) == {"flips"}


def test_who_evaluates_elsewhere_is_told_how_to_have_promises_there(trained, elsewhere, capsys, monkeypatch):
    hint = "petriscope calibrate .*run --data SOURCE"
    for source, hinted in ((elsewhere, True), (trained.recipe.data.source, False)):
        monkeypatch.setattr("sys.argv", ["petriscope", "evaluate", str(trained.folder), "--data", source])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        assert bool(re.search(hint, capsys.readouterr().err)) == hinted


def elsewhere_image(source):
    folder = Path(source).parent / "one"
    folder.mkdir()
    with np.load(source) as arrays:
        Image.fromarray(arrays["test_images"][0]).save(folder / "one.png")
    return folder


def test_without_val_nothing_is_fitted_and_that_is_said(trained, tiny_recipe, tmp_path, some_images):
    with np.load(trained.recipe.data.source) as arrays:
        np.savez(tmp_path / "no-val.npz", **{k: v for k, v in arrays.items() if not k.startswith("val")})
    recipe = tiny_recipe(data={"source": str(tmp_path / "no-val.npz"), "val_fraction": 0.0}, training={"epochs": 1})
    run = api.train(recipe, tmp_path / "second", quiet=True)
    assert load_model(run.model).trust.references == {}
    with pytest.raises(DataError, match="no val split"):
        api.calibrate(run.folder, quiet=True)
    with pytest.raises(RequestError, match="nothing"):
        api.predict(run.folder, [some_images], sets=0.9, quiet=True)


def test_predict_says_what_it_is_not_sure_of(trained, some_images, tmp_path):
    table = api.predict(trained.folder, [some_images], max_error=0.02, sets=0.9, quiet=True)
    assert list(table.columns) == ["image", "predicted", "confidence", "error", "answer", "why", "set", "p_0", "p_1"]
    green = table["image"].str.endswith("green.png")
    assert table.loc[green, "answer"].item() == NOT_SURE
    assert "unlike anything seen in training" in table.loc[green, "why"].item()
    assert table.loc[green, "predicted"].item() in ("0", "1")  # which stays the likeliest class
    assert (table.loc[~green, "answer"] == table.loc[~green, "predicted"]).sum() >= 3
    assert set(table["set"]) <= {"0", "1", "0; 1", "1; 0", NO_CLASS}
    (tmp_path / "bad.png").write_bytes(b"nothing")
    table = api.predict(trained.folder, [tmp_path / "bad.png"], max_error=0.02, sets=0.9, quiet=True)
    assert table[["answer", "why", "set"]].isna().all(axis=None) and table["error"].notna().all()


def test_what_cannot_be_promised_is_said(trained, some_images, capsys):
    table = api.predict(trained.folder, [some_images], max_error=0.0001)
    assert (table["answer"] == NOT_SURE).all()
    assert table["why"].str.contains("no confidence promises 0.01 % errors").all()
    assert "too few or too often wrong" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [{"max_error": 0.0}, {"max_error": 1.5}, {"sets": 1.0}, {"sets": -0.5}])
def test_shares_outside_0_and_1_are_refused(trained, some_images, wrong):
    with pytest.raises(RequestError, match="between 0 and 1"):
        api.predict(trained.folder, [some_images], quiet=True, **wrong)


def test_the_reasons_for_silence():
    rule = Answering(("a", "b"), 0.01, Threshold(0.01, 0.05, 900, 3, 0.05), np.array([0.3, 0.3]))
    p = np.array([[0.96, 0.04], [0.2, 0.8], [0.02, 0.98], [0.5, 0.5]], np.float32)
    words = rule.words(Answers(p, p, np.array([0.5, 0.5, 1.5, 2.0], np.float32)))
    assert [row["answer"] for row in words] == ["a", NOT_SURE, NOT_SURE, NOT_SURE]
    assert words[0]["why"] == ""
    assert words[1]["why"] == "confidence 80.0 % is below 95.0 %"
    assert words[2]["why"] == "unlike anything seen in training"
    assert words[3]["why"].count(";") == 1
    assert [row["set"] for row in words] == ["a", "b", "b", NO_CLASS]


def test_a_confidence_of_nearly_one_is_written_with_all_its_nines():
    rule = Answering(("a", "b"), 0.01, Threshold(0.01, 2e-7, 900, 3, 0.05))
    p = np.array([[1 - 3e-7, 3e-7]])
    assert rule.words(Answers(p, p, None))[0]["why"] == "confidence 99.99997 % is below 99.99998 %"


def test_the_file_holds_no_tensors_but_weights(trained):
    assert set(read_weights(trained.model).tensors) == set(load_model(trained.model).model.state_dict())


def test_damaged_references_are_an_error(trained):
    with safe_open(trained.model, framework="pt") as handle:
        facts = json.loads(handle.metadata()["petriscope"])
        tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
    facts["trust"]["references"]["none"]["doubt"]["base64"] = "AAAA"
    save_file(tensors, trained.model, metadata={"petriscope": json.dumps(facts)})
    with pytest.raises(RequestError, match="damaged"):
        load_model(trained.model)
    facts["trust"] = []
    save_file(tensors, trained.model, metadata={"petriscope": json.dumps(facts)})
    with pytest.raises(RequestError, match="damaged"):
        load_model(trained.model)


def test_what_val_said_can_be_replaced(trained):
    before = load_model(trained.model).model.state_dict()
    save_trust(trained.model, Trust())
    after = load_model(trained.model)
    assert after.trust.references == {}
    assert all(torch.equal(tensor, after.model.state_dict()[name]) for name, tensor in before.items())


def test_the_page_says_when_it_keeps_silent(trained):
    text = (trained.folder / "report.html").read_text(encoding="utf-8")
    assert 'id="silence"' in text and "only test shows whether" in text
    api.evaluate(trained.folder, quiet=True)
    text = write_report(trained).read_text(encoding="utf-8")
    assert "The test images had no part in them." in text
    assert "Share of wrong answers by share answered on test" in text
    assert "Mondrian" in text and "Before" in text
    results = trained.results
    for split in ("val", "test"):
        for key in ("calibration", "selective", "conformal", "ood"):
            del results[split][key]
    (trained.folder / "results.json").write_text(json.dumps(results))
    assert 'id="silence"' not in write_report(trained).read_text(encoding="utf-8")  # of a run evaluated before


def test_the_table_can_be_read_back(trained, some_images, tmp_path):
    api.predict(trained.folder, [some_images], max_error=0.02, sets=0.9, quiet=True).to_csv(
        tmp_path / "t.csv", index=False
    )
    table = pd.read_csv(tmp_path / "t.csv", keep_default_na=False)
    assert set(table["answer"]) <= {"0", "1", NOT_SURE}
    assert (table["set"] != "").all()
