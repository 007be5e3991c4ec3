"""``--classes`` and ``--prior`` of evaluate and predict, from a trained run to what is printed."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import petriscope as api
from petriscope.core.errors import RequestError
from petriscope.tasks import find_task

LIGHT = np.array([20, 60, 100])  # of the three classes, which overlap


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("classes")


@pytest.fixture
def run(tiny_recipe, tmp_path, kept):
    """A run with three classes, 0 to 2, and 450 images of val; trained once. The tests work on a copy in their folder."""
    if not (kept / "run").exists():
        rng = np.random.default_rng(0)
        arrays = {}
        for split, count in (("train", 240), ("val", 450), ("test", 60)):
            labels = np.arange(count) % 3
            level = LIGHT[labels] + rng.normal(0, 12, count)
            images = rng.integers(0, 60, (count, 12, 12, 3)) + np.clip(level, 0, 190)[:, None, None, None]
            arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels[:, None].astype(np.uint8)}
        np.savez(kept / "data.npz", **arrays)
        api.train(
            tiny_recipe(data={"source": str(kept / "data.npz")}, training={"epochs": 6}), kept / "run", quiet=True
        )
    shutil.copytree(kept / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def folder(kept, tmp_path):
    """Some images of test as files."""
    (tmp_path / "images").mkdir()
    with np.load(kept / "data.npz") as arrays:
        for i in range(30):
            Image.fromarray(arrays["test_images"][i]).save(tmp_path / "images" / f"{i:02}.png")
    return tmp_path / "images"


def as_of_an_older_version(run):
    """The model file without the probabilities of val."""
    with safe_open(run / "model.safetensors", framework="pt") as handle:
        facts = json.loads(handle.metadata()["petriscope"])
        tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
    for reference in facts["trust"]["references"].values():
        del tensors[reference.pop("probabilities")]
    save_file(tensors, run / "model.safetensors", metadata={"petriscope": json.dumps(facts)})


def test_predictions_are_restricted_and_say_so(petriscope, run, folder):
    plain = api.predict(run, folder, quiet=True)
    assert "assumed" not in plain.columns
    status, out, err = petriscope(
        "predict", "run", "images", "--classes", "2,0", "--max-error", 0.2, "--set-coverage", 0.9
    )
    assert status == 0
    assert "only these classes occur: 0, 2; the other 1 of 3 classes have probability 0" in err
    assert "On images of these classes like those of val, at most 20 % are wrong" in err
    table = pd.read_csv(io.StringIO(out), dtype={"predicted": str, "answer": str, "set": str})
    columns = ["image", "predicted", "confidence", "error", "answer", "why", "set", "assumed", "p_0", "p_1", "p_2"]
    assert list(table.columns) == columns
    assert (table["p_1"] == 0).all() and set(table["assumed"]) == {"only 0; 2"}
    assert set(table["predicted"]) <= {"0", "2"} and not table["set"].str.contains("1").any()
    p = plain[["p_0", "p_2"]].to_numpy()
    np.testing.assert_allclose(table[["p_0", "p_2"]], p / p.sum(1, keepdims=True), atol=1e-5)
    outside = int((plain["p_1"] > 0.5).sum())
    assert outside > 3 and f"of 30 images, {outside} look like classes that do not occur (first: images/01.png)" in err
    once = api.predict(run, folder, classes=["0", "2"], quiet=True)
    np.testing.assert_allclose(once[["p_0", "p_2"]], table[["p_0", "p_2"]], atol=1e-6)


def test_shares_reweight_predictions(petriscope, run, folder):
    status, out, err = petriscope("predict", "run", "images", "--prior", "0=9", "--prior", "1=1,2=0")
    assert status == 0
    assert "the class shares are 0 90 %, 1 10 % (given with sum 10, and divided by it)" in err
    table = pd.read_csv(io.StringIO(out))
    plain = api.predict(run, folder, quiet=True)
    ratio = (table["p_0"] / table["p_1"]) / (plain["p_0"] / plain["p_1"])
    ratio = ratio[(plain["p_0"] > 1e-3) & (plain["p_1"] > 1e-3)]
    np.testing.assert_allclose(ratio, ratio.iloc[0], rtol=1e-3)
    evaluation = api.evaluate(run, prior={"0": 0.9, "1": 0.1}, quiet=True)
    assert ratio.iloc[0] == pytest.approx(9 * evaluation.prior.implied["1"] / evaluation.prior.implied["0"], rel=1e-3)
    assert set(table["assumed"]) == {"0 0.9; 1 0.1"} and (table["p_2"] == 0).all()
    found = api.predict(run, folder, prior={"0": 0.9, "1": 0.1}, quiet=True)
    np.testing.assert_allclose(found["p_0"], table["p_0"], atol=1e-6)


def test_all_classes_change_nothing(run, folder):
    plain, asked = api.predict(run, folder, quiet=True), api.predict(run, folder, classes=["0,1,2"], quiet=True)
    pd.testing.assert_frame_equal(asked.drop(columns="assumed"), plain)


def test_an_evaluation_says_what_it_assumes_and_is_not_saved(petriscope, run):
    petriscope("evaluate", "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    status, _, err = petriscope("evaluate", "run", "--classes", "0,1")
    assert status == 0
    assert "metrics for given classes or shares are not saved in the run" in err
    assert "warning: 20 of 60 images are of classes that do not occur (2; first: " in err
    assert "they count as misclassified" in err and "only 0, 1" in err
    status, out, err = petriscope("evaluate", "run", "--prior", "0=0.5,1=0.3,2=0.2", "--json")
    tree = json.loads(out)
    assert status == 0 and tree["prior"]["shares"] == {"0": 0.5, "1": 0.3, "2": 0.2}
    assert tree["prior"]["classes"] == ["0", "1", "2"] and tree["prior"]["excluded_images"] == 0
    assert sum(tree["prior"]["implied"].values()) == pytest.approx(1)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    found = api.evaluate(run, split="test", classes=("0", "1"), stress=True, stress_images=9, quiet=True)
    assert found.n == 60 and found.prior.excluded_images == 20 and found.value("accuracy") <= 2 / 3
    assert found.selective is not None and found.stress is not None
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_restricting_helps_where_only_these_classes_occur(run, kept, tmp_path):
    with np.load(kept / "data.npz") as arrays:
        rows = np.flatnonzero(arrays["test_labels"][:, 0] != 1)
        np.savez(tmp_path / "two.npz", test_images=arrays["test_images"][rows], test_labels=arrays["test_labels"][rows])
    plain = api.evaluate(run, tmp_path / "two.npz", quiet=True)
    asked = api.evaluate(run / "model.safetensors", tmp_path / "two.npz", classes="0,2", quiet=True)
    assert plain.prior is None and asked.prior.excluded_images == 0
    assert asked.value("accuracy") > plain.value("accuracy")


def test_older_model_files_restrict_but_guarantee_nothing(petriscope, run, folder):
    as_of_an_older_version(run)
    status, out, _ = petriscope("predict", "run", "images", "--classes", "0,2")
    assert status == 0 and "only 0; 2" in out
    status, out, err = petriscope("predict", "run", "images", "--classes", "0,2", "--max-error", 0.2)
    assert status == 2 and out == "" and "petriscope calibrate RUN adds them" in err
    status, _, err = petriscope("predict", "run", "images", "--prior", "0=1,2=1")
    assert status == 2 and "prior: the model file is of an older version" in err
    status, out, err = petriscope("evaluate", "run", "--classes", "0,2", "--json")
    assert status == 0 and json.loads(out)["selective"] is None
    assert "thresholds and prediction sets for these classes are left out" in err
    assert petriscope("calibrate", "run")[0] == 0
    assert petriscope("predict", "run", "images", "--classes", "0,2", "--max-error", 0.2)[0] == 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--classes", "0,3"], "classes: the model has no class '3'"),
        (["--classes", "0"], "only 0 occurs"),
        (["--prior", "0,1"], "prior takes NAME=SHARE, such as 0=0.3; got '0'"),
        (["--classes", "0,1", "--prior", "0=1,1=1"], "give either classes or prior"),
    ],
)
def test_a_wrong_request_ends_with_2_and_a_sentence(petriscope, run, folder, args, says):
    for command in (["predict", "run", "images", "--out", "out.csv"], ["evaluate", "run"]):
        status, out, err = petriscope(*command, *args)
        assert status == 2 and out == "" and says in err and len(err.strip().splitlines()) == 1
    assert not (folder.parent / "out.csv").exists()


def test_masks_are_refused(run):
    predictor = api.load_model(run)
    assert predictor.under(None) is predictor
    masks = replace(predictor, task=find_task("segmentation"))
    with pytest.raises(RequestError, match="classes and prior need a classification model"):
        api.predict(masks, np.zeros((12, 12, 3), np.uint8), classes=("0", "1"), quiet=True)
