"""The commands as scripts see them: exit status, stdout, stderr."""

import json
import os

import pytest
import yaml
from PIL import Image

from petriscope.core.recipe import recipe_names


@pytest.fixture
def recipe_file(tiny_recipe, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_recipe(training={"epochs": 2}).to_yaml())
    return path


def test_from_training_to_a_table_of_predictions(petriscope, recipe_file, tmp_path):
    status, out, err = petriscope("train", recipe_file, "--out", "run", "--seed", 3)
    assert status == 0 and out == ""
    assert "epoch 2 of 2" in err
    assert "petriscope evaluate run" in err

    status, out, err = petriscope("evaluate", "run", "--json")
    assert status == 0 and err == ""
    assert json.loads(out)["n"] == 40

    status, _, err = petriscope("evaluate", "run", "--split", "val", "--tta", "d4")
    assert status == 0
    assert "Balanced accuracy" in err and "tta d4" in err

    status, _, err = petriscope("evaluate", "run", "--stress", "--stress-images", 8)
    assert status == 0
    assert "stress test, 8 of 40 images" in err
    assert err.count("trained against") == 1  # the recipe has one augmentation that is like a corruption: translate

    status, out, _ = petriscope("report", "run")
    assert status == 0 and out == "run/report.html\n"

    Image.new("RGB", (12, 12), (240, 240, 240)).save(tmp_path / "new.png")
    status, out, _ = petriscope("predict", "run", "new.png", "--max-error", "0.3", "--set-coverage", "0.9")
    assert status == 0
    assert out.splitlines()[0] == "image,predicted,confidence,error,answer,why,set,p_0,p_1"
    (tmp_path / "bad.png").write_bytes(b"nothing")
    status, out, err = petriscope("predict", "run", "new.png", "bad.png", "--out", "out.csv")
    assert status == 1 and out == ""
    assert "bad.png" in err
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 3

    status, out, err = petriscope("calibrate", "run", "--data", tmp_path / "tiny.npz", "--json")
    assert status == 0 and err == ""
    assert json.loads(out)["model"] == "run/model-tiny.safetensors"

    status, _, err = petriscope("train", recipe_file, "--out", "run")
    assert status == 2
    assert "exists" in err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["train", "blood/fats"], "did you mean blood/fast"),
        (["train", "demo", "--set", "trainig.epochs=3"], "did you mean training"),
        (["train", "demo", "--data", "/nowhere"], "no data source"),
        (["train"], "petriscope recipes"),
        (["train", "demo", "--resume", "x"], "--resume cannot be combined"),
        (["train", "--resume", "/nowhere"], "not a run folder"),
        (["evaluate", "/nowhere"], "not a run folder"),
        (["evaluate", "/nowhere", "--split", "tset"], "known: train, val, test"),
        (["evaluate", "/nowhere", "--stress-images", "9"], "needs --stress"),
        (["evaluate", "/nowhere", "--tta", "corps"], "known: none, mirror, flips, crops, d4"),
        (["predict", "/nowhere", "x.png"], "no model"),
        (["predict", "/nowhere", "x.png", "--max-error", "1"], "--max-error must lie between 0 and 1"),
        (["predict", "/nowhere", "x.png", "--set-coverage", "95"], "--set-coverage must lie between 0 and 1"),
        (["calibrate", "/nowhere"], "not a run folder"),
        (["calibrate", "/nowhere", "--data", "digits"], "no model"),
        (["calibrate", "/nowhere", "--out", "x.safetensors"], "--out needs --data"),
        (["calibrate", "/nowhere", "--data", "digits", "--split", "tset"], "known: train, val, test"),
        (["calibrate", "/nowhere", "--split", "train"], "--split and --keep-seen need --data"),
        (["calibrate", "/nowhere", "--keep-seen"], "--split and --keep-seen need --data"),
        (["predict", "/nowhere", "x", "--gpus", "1"], "--gpus are for --shards"),
        (["predict", "", "x"], "an empty name stands where a path should"),
        (["evaluate", ""], "an empty name stands where a path should"),
        (["compare", "x", "--out", "results.json"], "--out must name an HTML file"),
        (["compare", "/nowhere"], "not a run folder"),
        (["compare", "x", "--split", "tset"], "known: train, val, test"),
        (["bench", "blood-method"], "did you mean blood-methods"),
        (["bench", "blood-methods", "--seeds", "0,x"], "whole numbers"),
        (["bench", "blood-methods", "--seeds", "1", "--seeds", "1"], "different whole numbers"),
        (["bench", "blood-methods", "--split", "train"], "known: val, test"),
        (["bench", "blood-methods", "--only", "dropuot 0.5"], "did you mean dropout 0.5"),
        (["ensemble", "x", "x"], "not a run folder"),
        (["models", "resnet81"], "did you mean resnet18"),
        (["nonsense"], "No such command"),
    ],
)
def test_a_wrong_request_ends_with_2_and_a_sentence_and_leaves_nothing(petriscope, tmp_path, args, says):
    status, out, err = petriscope(*args)
    assert status == 2
    assert says in err
    assert out == ""
    assert not list(tmp_path.iterdir())


def test_lists(petriscope):
    _, out, _ = petriscope("recipes")
    indented = [line.split()[0] for line in out.splitlines() if line.startswith("  ")]
    assert sorted(indented) == recipe_names()
    _, shown, _ = petriscope("recipes", "blood/fast")
    assert "name: blood/fast" in shown
    assert "patience: null" in shown  # with all defaults filled in
    assert "simple-cnn" in petriscope("models")[1]
    assert "synthetic-smear" in petriscope("data")[1]
    described = petriscope("data", "digits")[1]
    assert "8x8, gray" in described
    assert "1,797" in petriscope("data")[1]
    status, out, err = petriscope("data", "digits", "--like", "digits")
    assert status == 0 and "sharpness" in out and "+0.0" in out and "medians, and the quartiles" in err
    assert petriscope("data", "--like", "digits")[0] == 2
    assert "blood-methods" in petriscope("bench")[1]


def test_a_suite_is_trained_and_its_runs_are_compared(petriscope, tiny_recipe, tmp_path):
    (tmp_path / "tiny.yaml").write_text(tiny_recipe(training={"epochs": 1}).to_yaml())
    methods = {"plain": "tiny.yaml", "bad": {"recipe": "tiny.yaml", "set": {"optimizer.lr": 1e30}}}
    (tmp_path / "trial.yaml").write_text(yaml.safe_dump({"seeds": [0], "methods": methods}, sort_keys=False))
    status, out, err = petriscope("bench", "trial.yaml", "--out", "out", "--json")
    assert status == 1
    assert "run 2 of 2: bad, seed 0" in err and "1 of 2 runs failed" in err and "diverged" in err
    assert "Traceback" not in err
    found = json.loads(out)
    assert [row["label"] for row in found["comparison"]["rows"]] == ["plain"] and "bad, seed 0" in found["failures"]

    status, out, err = petriscope("compare", "out/plain-seed0", "--out", "page.html")
    assert status == 0 and err == "page: page.html\n"
    assert out.startswith("val, 40 images") and (tmp_path / "page.html").is_file()
    status, out, _ = petriscope("compare", "out/plain-seed0", "--metric", "macro_f1", "--json")
    assert status == 0 and json.loads(out)["metric"] == "macro_f1"
    status, _, err = petriscope("compare", "out/plain-seed0", "--metric", "f1")
    assert status == 2 and "known: accuracy" in err


@pytest.mark.parametrize("command", ["audit", "train", "evaluate", "calibrate", "adapt", "ensemble", "bench", "data"])
def test_rehash_reads_every_file_again(petriscope, command, monkeypatch):
    monkeypatch.setenv("PETRISCOPE_REHASH", "")
    _, _, err = petriscope(command, "nothing-of-this-name", "--rehash")
    assert "nothing-of-this-name" in err and os.environ["PETRISCOPE_REHASH"] == "1"
