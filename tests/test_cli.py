"""The command line as scripts see it: exit status, stdout, stderr."""

import json
import os
import subprocess
import sys

import pytest

from petriscope.core.recipe import recipe_names


def petriscope(*args, cwd=None, **env):
    return subprocess.run(
        [sys.executable, "-m", "petriscope", *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **env},
        timeout=240,
    )


@pytest.fixture
def recipe_file(tiny_recipe, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_recipe(training={"epochs": 2}).to_yaml())
    return path


def test_from_training_to_a_table_of_predictions(recipe_file, tmp_path):
    done = petriscope("train", recipe_file, "--out", "run", "--seed", 3, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "epoch 2 of 2" in done.stderr
    assert "petriscope evaluate run" in done.stderr

    done = petriscope("evaluate", "run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads(done.stdout)["n"] == 40

    done = petriscope("evaluate", "run", "--split", "val", "--tta", "d4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "balanced accuracy" in done.stderr

    done = petriscope("evaluate", "run", "--stress", "--stress-images", 8, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "stress test, 8 of 40 images" in done.stderr
    assert "disturbed mean" in done.stderr
    assert done.stderr.count("trained against") == 1  # of the recipe, translate alone is like a corruption

    done = petriscope("report", "run", cwd=tmp_path)
    assert done.stdout.strip() == "run/report.html"

    from PIL import Image

    Image.new("RGB", (12, 12), (240, 240, 240)).save(tmp_path / "new.png")
    done = petriscope("predict", "run", "new.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "image,predicted,confidence,error,answer,why,p_0,p_1"
    (tmp_path / "bad.png").write_bytes(b"nothing")
    done = petriscope("predict", "run", "new.png", "bad.png", "--out", "out.csv", cwd=tmp_path)
    assert done.returncode == 1
    assert "bad.png" in done.stderr
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 3

    done = petriscope("train", recipe_file, "--out", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert "exists" in done.stderr


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["train", "blood/fats"], "did you mean blood/fast"),
        (["train", "demo", "--set", "trainig.epochs=3"], "did you mean training"),
        (["train", "demo", "--data", "/nowhere"], "no data source"),
        (["train"], "petriscope recipes"),
        (["train", "demo", "--resume", "x"], "--resume takes the run alone"),
        (["train", "--resume", "/nowhere"], "no run folder"),
        (["evaluate", "/nowhere"], "no run folder"),
        (["evaluate", "/nowhere", "--split", "tset"], "known: train, val, test"),
        (["evaluate", "/nowhere", "--stress-images", "9"], "goes with --stress"),
        (["evaluate", "/nowhere", "--tta", "corps"], "known: none, mirror, flips, crops, d4"),
        (["predict", "/nowhere", "x.png"], "no model"),
        (["predict", "/nowhere", "x.png", "--max-error", "1"], "--max-error lies between 0 and 1"),
        (["predict", "/nowhere", "x.png", "--sets", "95"], "--sets lies between 0 and 1"),
        (["calibrate", "/nowhere"], "no run folder"),
        (["calibrate", "/nowhere", "--data", "digits"], "no model"),
        (["calibrate", "/nowhere", "--out", "x.safetensors"], "--out goes with --data"),
        (["calibrate", "/nowhere", "--data", "digits", "--split", "tset"], "known: train, val, test"),
        (["models", "resnet81"], "did you mean resnet18"),
        (["nonsense"], "No such command"),
    ],
)
def test_a_wrong_request_ends_with_2_and_a_sentence(args, says, tmp_path):
    done = petriscope(*args, cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


def test_lists(tmp_path):
    done = petriscope("recipes", cwd=tmp_path)
    indented = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert sorted(indented) == recipe_names()
    assert "BloodMNIST at 28 px" in done.stdout.splitlines()
    shown = petriscope("recipes", "blood/fast").stdout
    assert "name: blood/fast" in shown
    assert "patience: null" in shown  # with all defaults filled in
    assert "simple-cnn" in petriscope("models").stdout
    assert "synthetic-smear" in petriscope("data").stdout
    assert "1,797" in petriscope("data").stdout
    described = petriscope("data", "digits").stdout
    assert "8x8, gray" in described


def test_help_and_import_leave_torch_alone():
    code = "import sys, petriscope; from petriscope import cli; sys.argv = ['petriscope', '--help']\n"
    code += "try:\n    cli.main()\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'numpy', 'pandas', 'pydantic', 'yaml'} & set(sys.modules), sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout
    for name in ("train", "load_recipe", "Run"):
        assert name in __import__("petriscope").__all__


def test_the_python_face_is_what_it_says():
    import petriscope as p

    assert all(getattr(p, name) is not None for name in p.__all__)
    with pytest.raises(AttributeError):
        p.nonsense  # noqa: B018
