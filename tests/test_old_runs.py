"""Run folders and model files that Petriscope 0.1 wrote still open, evaluate, predict, resume and report.

``runs_of_0_1`` holds one run of each kind, trained on embedded data, and what that version predicted for the first images
of val.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petriscope import api
from petriscope.data import load_dataset
from petriscope.inference.predictor import load_model
from petriscope.run.folder import Run, open_run

OLD = Path(__file__).parent / "runs_of_0_1"
FINISHED = ("classification", "segmentation", "ensemble")


@pytest.fixture
def old_run(tmp_path):
    def copy(name: str) -> Run:
        return open_run(shutil.copytree(OLD / name, tmp_path / name))

    return copy


@pytest.mark.parametrize("name", FINISHED)
def test_predicts_the_same(name):
    predictor = load_model(OLD / name, "cpu")
    images = load_dataset(predictor.recipe.data).split("val").take(np.arange(4))
    found = predictor.probabilities(images)
    with np.load(OLD / "predictions.npz") as before:
        np.testing.assert_allclose(found[..., ::4, ::4] if predictor.task.dense else found, before[name], atol=1e-5)


@pytest.mark.parametrize("name", FINISHED)
def test_opens_and_reports(name, old_run):
    run = old_run(name)
    results, environment = run.results, run.environment
    assert results.task == environment.data.task == ("segmentation" if name == "segmentation" else "classification")
    assert results.val.n == environment.data.splits["val"].images > 0
    assert results.cost.inference_images_per_second > 0
    page = api.report(run.folder).path.read_text(encoding="utf-8")
    first = "miou" if name == "segmentation" else "accuracy"
    assert f"{100 * results.val.value(first):.2f}" in page
    if name == "classification":
        stress = results.stress["val"]
        assert stress.metric_name == "balanced_accuracy" and stress.guarantees is not None
        assert f"{100 * stress.value('mean'):.1f}" in page and len(run.gallery["disturbed"])
    if name == "ensemble":
        assert [member.val_score for member in results.ensemble.members] != [None, None]


@pytest.mark.parametrize("name", FINISHED)
def test_is_evaluated_as_before(name, old_run):
    run = old_run(name)
    before = run.results.val
    after = api.evaluate(run.folder, split="val", device="cpu", quiet=True)
    first = "miou" if name == "segmentation" else "accuracy"
    assert after.n == before.n and after.value(first) == pytest.approx(before.value(first), abs=1e-4)
    assert after.metric(first).ci95 == pytest.approx(before.metric(first).ci95, abs=1e-3)
    assert run.results.val.value(first) == after.value(first)
    assert len(run.predictions) == before.n, "rows of val take the place of the older ones"


def test_predicts_files_with_what_was_fitted_on_val(old_run, tmp_path):
    run = old_run("classification")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "blank.png")
    (row,) = api.predict(run.folder, [tmp_path / "blank.png"], quiet=True, max_error=0.3, set_coverage=0.9).to_dict(
        "records"
    )
    assert row["answer"] == "not sure" and row["why"] and row["set"]


def test_runs_are_compared_across_versions(old_run, tmp_path):
    old = old_run("classification")
    new = api.train(old.recipe.model_copy(update={"seed": 3, "name": "new"}), tmp_path / "new", quiet=True)
    found = api.compare([old.folder, new.folder], split="val")
    assert [row.seeds for row in found.rows] == [(0, 3)], "one recipe, two seeds"


def test_an_interrupted_training_goes_on(old_run):
    run = old_run("interrupted")
    before = run.history
    api.resume(run.folder, quiet=True)
    assert run.finished and run.results.training.epochs == run.recipe.training.epochs == len(run.history)
    assert [epoch.train for epoch in run.history[: len(before)]] == [epoch.train for epoch in before]
    assert run.results.val.value("accuracy") > 0.5
