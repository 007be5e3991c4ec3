"""From training to answers and abstentions, through the API."""

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
from petriscope.inference.predictor import load_model, save_trust
from petriscope.metrics.selective import Threshold
from petriscope.models.weights import read_weights
from petriscope.report import write_report
from petriscope.run.folder import open_run
from petriscope.trust.abstention import NO_CLASS, NOT_SURE, Abstention
from petriscope.trust.state import Trust
from petriscope.trust.temperature import scale


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("abstention")


@pytest.fixture
def trained(tiny_recipe, tmp_path, kept):
    """A run with 600 images of val, enough to guarantee at most 2 % errors, trained once for all tests."""
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


def without_trust(run):
    """The run with nothing fitted on val, as older versions wrote it."""
    with safe_open(run.model, framework="pt") as handle:
        facts = json.loads(handle.metadata()["petriscope"])
        tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
    del facts["trust"]
    save_file(tensors, run.model, metadata={"petriscope": json.dumps(facts)})
    return run


def test_what_training_fits_on_val_is_applied_everywhere(trained):
    predictor = load_model(trained.model)
    reference = predictor.trust.references["none"]
    assert reference.temperature != 1 and len(reference.uncertainty) == 600
    with np.load(trained.recipe.data.source) as arrays:
        images = arrays["test_images"]
    found = predictor.predict(images)
    np.testing.assert_allclose(found.probabilities, scale(found.raw, reference.temperature), atol=1e-6)
    np.testing.assert_allclose(predictor.probabilities(images), found.probabilities, atol=1e-6)
    result = api.evaluate(trained.folder, quiet=True)
    rows = trained.predictions.query("split == 'test'")
    np.testing.assert_allclose(rows[["p_0", "p_1"]].to_numpy(), found.probabilities, atol=1e-5)
    assert result.calibration.temperature == reference.temperature
    assert result.value("nll") == pytest.approx(result.calibration.after.nll, rel=1e-3)
    assert result.ood.share == (found.ood > 1).mean()


def test_predictions_on_val_are_those_of_its_evaluation(trained):
    reference = load_model(trained.model).trust.references["none"]
    rows = trained.predictions.query("split == 'val'")
    np.testing.assert_allclose(1 - rows["confidence"], reference.uncertainty, atol=1e-6)
    assert (rows["target"] == rows["predicted"]).tolist() == reference.right.astype(bool).tolist()


def test_each_test_time_augmentation_has_its_own_temperature(trained):
    of_recipe = load_model(trained.model).trust.references["none"].temperature
    result = api.evaluate(trained.folder, tta="flips", quiet=True)
    assert result.selective is None and result.calibration.temperature == of_recipe
    before = trained.results.val
    api.calibrate(trained.folder, tta="flips", quiet=True)
    assert trained.results.val == before  # of the recipe's test-time augmentation
    predictor = load_model(trained.model)
    assert set(predictor.trust.references) == {"none", "flips"}
    own = predictor.trust.references["flips"].temperature
    assert own != of_recipe
    result = api.evaluate(trained.folder, tta="flips", quiet=True)
    assert result.selective is not None and result.calibration.temperature == own
    with np.load(trained.recipe.data.source) as arrays:
        found = predictor.predict(arrays["test_images"], "flips")
    logs = np.log(found.raw.astype(float)) / own
    np.testing.assert_allclose(np.exp(logs) / np.exp(logs).sum(1, keepdims=True), found.probabilities, atol=1e-5)


def test_an_older_model_file_predicts_as_before_and_can_be_calibrated(trained, some_images):
    weights = trained.model.read_bytes()
    run = without_trust(trained)
    predictor = load_model(run.model)
    assert predictor.trust.references == {} and predictor.trust.detector is None
    table = api.predict(run.folder, [some_images], quiet=True)
    assert table["answer"].tolist() == table["predicted"].tolist()
    with pytest.raises(RequestError, match="petriscope calibrate"):
        api.predict(run.folder, [some_images], max_error=0.1, quiet=True)
    assert api.evaluate(run.folder, quiet=True).conformal is None
    for _ in range(2):
        api.calibrate(run.folder, quiet=True)
        assert run.model.read_bytes() == weights


@pytest.fixture
def elsewhere(trained, tmp_path):
    """Darker images, with one label in 50 wrong: 600 of val and 600 of test."""
    rng = np.random.default_rng(1)
    with np.load(trained.recipe.data.source) as arrays:
        some_images, labels = arrays["val_images"] // 2 + 60, arrays["val_labels"]
    arrays = {}
    for split in ("val", "test"):
        wrong = rng.permutation(600) < 12
        arrays |= {f"{split}_images": some_images, f"{split}_labels": np.where(wrong[:, None], 1 - labels, labels)}
    np.savez(tmp_path / "elsewhere.npz", **arrays)
    return str(tmp_path / "elsewhere.npz")


def test_recalibrating_gives_guarantees_for_images_from_elsewhere(trained, elsewhere):
    before, own = trained.model.read_bytes(), trained.results
    uncalibrated = api.evaluate(trained.folder, data=elsewhere, quiet=True)
    assert uncalibrated.ood.share > 0.9
    metrics, model = api.recalibrate(trained.folder, elsewhere, quiet=True)
    assert model == trained.folder / "model-elsewhere.safetensors" and metrics.split == "val"
    assert trained.model.read_bytes() == before and trained.results == own
    with pytest.raises(DataError, match="fitted on 600"):
        api.evaluate(model, data=elsewhere, quiet=True)
    fitted = api.evaluate(model, data=elsewhere, quiet=True, keep_seen=True)
    assert fitted.value("accuracy") == uncalibrated.value("accuracy") and fitted.ood.share <= 0.01
    row = next(row for row in fitted.selective if row.max_error == 0.05)
    assert row.coverage > 0.9 and row.error <= 0.05
    assert fitted.value("nll") < uncalibrated.value("nll")
    table = api.predict(model, [elsewhere_image(elsewhere)], max_error=0.05, set_coverage=0.9, quiet=True)
    assert table["answer"].item() == table["predicted"].item()

    with pytest.raises(RequestError, match=r"model-elsewhere.safetensors exists; choose another --out"):
        api.recalibrate(trained.folder, elsewhere, quiet=True)
    again, other = api.recalibrate(model, elsewhere, model.with_name("other.safetensors"), "test", "flips", quiet=True)
    assert again.split == "test" and set(load_model(other).trust.references) == {"flips"}


def test_evaluating_images_from_elsewhere_hints_at_calibration(trained, elsewhere, capsys, monkeypatch):
    hint = "GUARANTEES WITHDRAWN(.*\n)*.*petriscope adapt .*run --data .*elsewhere.npz"
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


def test_without_val_nothing_is_fitted(trained, tiny_recipe, tmp_path, some_images):
    with np.load(trained.recipe.data.source) as arrays:
        np.savez(tmp_path / "no-val.npz", **{k: v for k, v in arrays.items() if not k.startswith("val")})
    recipe = tiny_recipe(data={"source": str(tmp_path / "no-val.npz"), "val_fraction": 0.0}, training={"epochs": 1})
    run = api.train(recipe, tmp_path / "second", quiet=True)
    assert load_model(run.model).trust.references == {}
    with pytest.raises(DataError, match="no val split"):
        api.calibrate(run.folder, quiet=True)
    with pytest.raises(RequestError, match="no predictions on val"):
        api.predict(run.folder, [some_images], set_coverage=0.9, quiet=True)


def test_predict_abstains_and_gives_reasons(trained, some_images, tmp_path):
    table = api.predict(trained.folder, [some_images], max_error=0.02, set_coverage=0.9, quiet=True)
    assert list(table.columns) == ["image", "predicted", "confidence", "error", "answer", "why", "set", "p_0", "p_1"]
    green = table["image"].str.endswith("green.png")
    assert table.loc[green, "answer"].item() == NOT_SURE
    assert "out of distribution" in table.loc[green, "why"].item()
    assert table.loc[green, "predicted"].item() in ("0", "1")
    assert (table.loc[~green, "answer"] == table.loc[~green, "predicted"]).sum() >= 3
    assert set(table["set"]) <= {"0", "1", "0; 1", "1; 0", NO_CLASS}
    (tmp_path / "bad.png").write_bytes(b"nothing")
    table = api.predict(trained.folder, [tmp_path / "bad.png"], max_error=0.02, set_coverage=0.9, quiet=True)
    assert table[["answer", "why", "set"]].isna().all(axis=None) and table["error"].notna().all()


def test_an_error_rate_without_a_guarantee_is_reported(trained, some_images, capsys):
    table = api.predict(trained.folder, [some_images], max_error=0.0001)
    assert (table["answer"] == NOT_SURE).all()
    assert table["why"].str.contains("no confidence guarantees at most 0.01 % errors").all()
    assert "no confidence guarantees" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", [{"max_error": 0.0}, {"max_error": 1.5}, {"set_coverage": 1.0}, {"set_coverage": -0.5}]
)
def test_shares_outside_0_and_1_are_refused(trained, some_images, wrong):
    with pytest.raises(RequestError, match="between 0 and 1"):
        api.predict(trained.folder, [some_images], quiet=True, **wrong)


def test_the_reasons_for_abstaining():
    plan = Abstention(("a", "b"), 0.01, Threshold(0.01, 0.05, 900, 3, 0.05), np.array([0.3, 0.3]))
    p = np.array([[0.96, 0.04], [0.2, 0.8], [0.02, 0.98], [0.5, 0.5]], np.float32)
    rows = plan.rows(p, np.array([0.5, 0.5, 1.5, 2.0], np.float32))
    assert [row["answer"] for row in rows] == ["a", NOT_SURE, NOT_SURE, NOT_SURE]
    assert rows[0]["why"] == ""
    assert rows[1]["why"] == "confidence 80.0 % is below 95.0 %"
    assert rows[2]["why"].startswith("out of distribution")
    assert rows[3]["why"].count(";") == 1
    assert [row["set"] for row in rows] == ["a", "b", "b", NO_CLASS]


def test_a_confidence_near_1_is_written_with_enough_digits():
    plan = Abstention(("a", "b"), 0.01, Threshold(0.01, 2e-7, 900, 3, 0.05))
    p = np.array([[1 - 3e-7, 3e-7]])
    assert plan.rows(p, None)[0]["why"] == "confidence 99.99997 % is below 99.99998 %"


def test_arrays_fitted_on_val_are_tensors_beside_the_weights(trained):
    with safe_open(trained.model, framework="pt") as handle:
        assert {"trust/references/none/target", "trust/detector/pixels/whiten"} <= set(handle.keys())
        assert "base64" not in handle.metadata()["petriscope"]
    assert set(read_weights(trained.model).tensors) == set(load_model(trained.model).model.state_dict())


def test_damaged_references_are_an_error(trained):
    with safe_open(trained.model, framework="pt") as handle:
        facts = json.loads(handle.metadata()["petriscope"])
        tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
    name = facts["trust"]["references"]["none"]["doubt"]
    tensors[name] = tensors[name][:1]
    save_file(tensors, trained.model, metadata={"petriscope": json.dumps(facts)})
    with pytest.raises(RequestError, match="damaged"):
        load_model(trained.model)
    facts["trust"] = []
    save_file(tensors, trained.model, metadata={"petriscope": json.dumps(facts)})
    with pytest.raises(RequestError, match="damaged"):
        load_model(trained.model)


def test_trust_in_a_model_file_can_be_replaced(trained):
    predictor = load_model(trained.model)
    before = predictor.model.state_dict()
    predictor.trust = Trust()
    save_trust(trained.model, predictor)
    after = load_model(trained.model)
    assert after.trust.references == {}
    assert all(torch.equal(tensor, after.model.state_dict()[name]) for name, tensor in before.items())


def test_the_page_has_a_section_on_abstention(trained):
    assert 'id="abstention"' in (trained.folder / "report.html").read_text(encoding="utf-8")
    results = json.loads((trained.folder / "results.json").read_text())
    for key in ("calibration", "selective", "conformal", "ood"):
        del results["val"][key]
    (trained.folder / "results.json").write_text(json.dumps(results))
    assert 'id="abstention"' not in write_report(trained).read_text(encoding="utf-8")


def test_the_table_can_be_read_back(trained, some_images, tmp_path):
    api.predict(trained.folder, [some_images], max_error=0.02, set_coverage=0.9, quiet=True).to_csv(
        tmp_path / "t.csv", index=False
    )
    table = pd.read_csv(tmp_path / "t.csv", keep_default_na=False)
    assert set(table["answer"]) <= {"0", "1", NOT_SURE}
    assert (table["set"] != "").all()
