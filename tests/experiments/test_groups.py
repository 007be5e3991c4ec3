"""A source whose images belong to groups, from training to report: what is said of n is said of groups too."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from petriscope import api
from petriscope.cli.printing import print_evaluation
from petriscope.inference.predictor import load_model
from petriscope.report.compare import as_text, render

PER_GROUP = {"train": 20, "val": 8, "test": 10}


@pytest.fixture(params=[{"test": 4}, {"test": 1}], ids=["four groups in test", "one group in test"])
def grouped(request, tiny_npz, tiny_recipe):
    """A trained run with a test split of some groups, evaluated."""
    arrays = dict(np.load(tiny_npz))
    sizes = PER_GROUP if request.param["test"] == 4 else {**PER_GROUP, "test": 40}
    for split, size in sizes.items():
        count = len(arrays[f"{split}_labels"])
        arrays[f"{split}_groups"] = np.array([f"{split} slide {i // size}" for i in range(count)])
    np.savez(tiny_npz, **arrays)
    run = api.train(tiny_recipe(training={"epochs": 1}), quiet=True)
    return run, request.param["test"]


def test_groups_stand_beside_n_and_intervals_are_over_them(grouped, capsys, tmp_path, monkeypatch):
    run, groups = grouped
    evaluation = api.evaluate(run, quiet=True)
    tree = json.loads((run.folder / "results.json").read_text())
    assert (tree["val"]["groups"], tree["test"]["groups"], tree["test"]["val_groups"]) == (5, groups, 5)
    assert ("group" in run.predictions) and set(run.predictions["group"]) >= {"test slide 0"}
    for key in ("accuracy_ci95", "macro_f1_ci95", "nll_ci95"):
        assert (tree["test"][key] == [None, None]) == (groups == 1), key
    assert all(row["coverage_ci95"] == [None, None] for row in tree["test"]["conformal"]) == (groups == 1)

    print_evaluation(evaluation)
    said = capsys.readouterr().err
    assert f"test, 40 images of {groups} group" in said
    assert ("so there are no intervals" in said) == (groups == 1) and "nan" not in said.lower()
    assert "not guaranteed by 5 groups of val" in said
    page = (run.folder / "report.html").read_text()
    assert f"40 test images of {groups} group" in page.replace("\N{NO-BREAK SPACE}", " ")
    assert ("so there are no intervals" in page) == (groups == 1) and "nan" not in page.split("<main>")[1].split(
        "<footer"
    )[0]

    found = api.compare([run])
    assert found.groups == groups and found.as_dict()["groups"] == groups
    for text in (as_text(found), render(found)):
        assert f"of {groups} group" in text and "nan" not in text.split("<main>")[-1].split("<script>")[0]


def test_guarantees_rest_on_groups(grouped, tmp_path, capsys):
    run, _ = grouped
    reference = load_model(run).trust.references["none"]
    assert reference.groups == 5 and len(reference.index) == 40
    Image.fromarray(np.full((12, 12, 3), 200, np.uint8)).save(tmp_path / "new.png")
    table = api.predict(run, tmp_path / "new.png", max_error=0.01, set_coverage=0.9)
    assert table["answer"].tolist() == ["not sure"]
    said = capsys.readouterr().err
    assert "an error rate of 1 % cannot be guaranteed from fewer than 368 groups" in said
    assert "too few groups of 0, 1" in said
