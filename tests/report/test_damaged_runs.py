"""Run folders whose files are damaged or foreign: the page is written without them and says so, or a sentence names them."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from petriscope.core.errors import PetriscopeError
from petriscope.experiments.compare import compare
from petriscope.report import write_report
from petriscope.report.page import render
from petriscope.run.folder import Run, open_run

OLD = Path(__file__).parents[1] / "runs_of_0_1"
VALUES = (None, "x", -1, 0, 1e308, 10**30, [], {}, [[]], float("nan"), True, [None], {"a": 1})
OPTIONAL = ("results.json", "metrics.jsonl", "predictions.parquet", "gallery.npz")


@pytest.fixture
def run(tmp_path) -> Run:
    return open_run(shutil.copytree(OLD / "classification", tmp_path / "run"))


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def overwritten(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + rng.randbytes(8) + data[start + 8 :]


def changed(data: bytes, rng: random.Random) -> bytes:
    """JSON with one value or key changed, so that it is still JSON."""
    lines = [data.decode()] if data.lstrip().startswith(b"{\n") else data.decode().splitlines()
    number = rng.randrange(len(lines))
    tree = node = json.loads(lines[number])
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = rng.choice(keys)
        inner = node[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.3:
            break
        node = inner
    if rng.random() < 0.3:
        del node[key]
    elif isinstance(inner, list) and rng.random() < 0.5:
        node[key] = inner[:-1] if rng.random() < 0.5 else inner * 2
    else:
        node[key] = rng.choice(VALUES)
    lines[number] = json.dumps(tree)
    return "\n".join(lines).encode()


@pytest.mark.parametrize("name", ["classification", "segmentation", "ensemble"])
def test_a_damaged_file_is_left_out_or_refused_in_a_sentence(tmp_path, name):
    rng = random.Random(name)
    run = open_run(shutil.copytree(OLD / name, tmp_path / "run"))
    for path in sorted(path for path in run.folder.iterdir() if path.suffix != ".safetensors"):
        whole = path.read_bytes()
        ways = (changed, changed, cut, overwritten) if path.suffix.startswith(".json") else (cut, overwritten)
        for way in ways:
            path.write_bytes(way(whole, rng))
            try:
                assert "<html" in render(open_run(run.folder))
                if name == "classification":
                    compare([run.folder])
            except PetriscopeError as error:
                assert str(error) and "\n  " not in str(error)
        path.write_bytes(whole)


@pytest.mark.parametrize("name", OPTIONAL)
@pytest.mark.parametrize("data", [b"", b"\xff\x81", b"{", b"PAR1", b"[1]", "folder"])
def test_the_page_names_the_file_and_shows_the_rest(run, name, data, capsys):
    path = run.folder / name
    path.unlink()
    path.mkdir() if data == "folder" else path.write_bytes(data)
    page = write_report(run).read_text(encoding="utf-8")
    if path.is_file() and not (name == "metrics.jsonl" and data == b""):
        assert name in capsys.readouterr().err and f"{run.folder / name}" in page
    assert "Normalization" in page and run.recipe.name in page


def test_the_page_of_a_sound_run_warns_of_nothing(run, capsys):
    assert "damaged" not in render(run) and not capsys.readouterr().err


@pytest.mark.parametrize(
    "table",
    [
        {"id": ["a"], "split": ["val"]},
        {"split": ["val"], "target": ["a"]},
        {"id": [1.5], "split": ["val"], "target": [None], "predicted": [[1, 2]], "confidence": ["high"], "p_0": ["x"]},
        {"id": [None], "split": ["val"], "target": [3], "predicted": [3], "confidence": [0.5]},
    ],
)
@pytest.mark.filterwarnings("error")
def test_predictions_of_another_kind_cost_only_what_needs_them(run, table):
    pd.DataFrame(table).to_parquet(run.folder / "predictions.parquet")
    assert "<html" in render(run)
    for job in (
        lambda: compare([run.folder]),
        lambda: run.add_predictions("test", pd.DataFrame({"id": ["b"], "split": ["test"], "confidence": [0.5]})),
    ):
        try:
            job()
        except PetriscopeError as error:
            assert "predictions.parquet" in str(error) or "no predictions" in str(error)


@pytest.mark.parametrize("value", [np.zeros(3), np.zeros((2, 2, 5, 4, 3)), np.array("x"), np.full((1, 1), np.nan)])
def test_a_gallery_of_another_kind_costs_only_its_images(run, value):
    names = list(run.gallery)
    (run.folder / "gallery.npz").unlink()
    run.write_gallery("odd", **dict.fromkeys(names, value))
    assert "Normalization" in render(run)


def test_numbers_that_json_does_not_have_are_no_values(run):
    path = run.folder / "results.json"
    tree = json.loads(path.read_text())
    tree["val"]["accuracy"], tree["val"]["macro_f1"] = float("nan"), float("-inf")
    path.write_text(json.dumps(tree).replace("-Infinity", "-1e999"))
    assert run.results.val.value("accuracy") is None and run.results.val.value("macro_f1") is None


def test_predictions_without_an_id_are_named(run):
    pd.DataFrame({"id": [None], "split": ["val"]}).to_parquet(run.folder / "predictions.parquet")
    with pytest.raises(PetriscopeError, match=r"predictions\.parquet .*rows without id.*evaluate again"):
        _ = run.predictions


def test_a_text_in_the_predictions_that_is_none_is_named(run):
    run.add_predictions("test", pd.DataFrame({"id": ["image-of-a-cell"], "split": ["test"]}))
    path = run.folder / "predictions.parquet"
    path.write_bytes(path.read_bytes().replace(b"image-of-a-cell", b"image-\xff\xfe-a-cell"))
    with pytest.raises(PetriscopeError, match=r"predictions\.parquet .*evaluate again"):
        _ = run.predictions
