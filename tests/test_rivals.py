"""benchmarks/rivals.py with scripts of rivals that guess: what it measures, how it scores, and that nothing is done twice."""

import ast
import json
import shutil
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petriscope.core.masks import IGNORE

FILE = Path(__file__).parents[1] / "benchmarks" / "rivals.py"

GUESS = '''"""Gives every image the class of the folder with the most images, and is {sure} sure."""

import json  # counted
from shared import files


def train(images, work, seconds, seed):
    assert 0 < seconds < 6 and seed == 3
    with (work.parent / "trained-{name}.txt").open("a") as file:  # benchmark
        file.write("once\\n")  # benchmark
    counts = {{each.name: len(files(each)) for each in (images / "train").iterdir()}}
    (work / "model.json").write_text(json.dumps(counts))


def predict(test, work):
    # the rarer class first, which must not matter
    counts = json.loads((work / "model.json").read_text())
    classes = sorted(counts, key=counts.get)
    {trouble}
    return classes, [[1 - {sure}, {sure}] for _ in files(test)]
'''


@pytest.fixture(scope="module")
def rivals():
    spec = spec_from_file_location("rivals_benchmark", FILE)
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def scripts(rivals, tmp_path, monkeypatch):
    folder = tmp_path / "scripts"
    folder.mkdir()
    for name in ("start.py", "shared.py"):
        shutil.copy(rivals.SCRIPTS / name, folder)
    for name, sure in (("petriscope", 0.9), ("guess", 0.7)):
        (folder / f"{name}_script.py").write_text(GUESS.format(name=name, sure=sure, trouble="pass"))
    monkeypatch.setattr(rivals, "SCRIPTS", folder)
    found = {name: rivals.Rival(f"{name}_script.py") for name in ("petriscope", "guess")}
    monkeypatch.setattr(rivals, "LABELS", found)
    return folder


@pytest.fixture
def source(tmp_path):
    """Of 12 test images, 9 are of the class that most are of."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, labels in (("train", [0] * 20 + [1] * 10), ("val", [0, 1, 0, 1]), ("test", [0] * 9 + [1] * 3)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (len(labels), 8, 8, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.array(labels, dtype=np.uint8)[:, None]
    np.savez(tmp_path / "images.npz", **arrays)
    return tmp_path / "images.npz"


def times(out: Path, name: str) -> int:
    return len((out / "work" / f"trained-{name}.txt").read_text().splitlines())


def test_rivals_are_measured_scored_and_done_once(rivals, scripts, source, tmp_path):
    out = tmp_path / "out"
    arguments = ["--data", f"cells={source},images=17", "--minutes", "0.1", "--seeds", "3", "--out", str(out)]
    failing = (scripts / "guess_script.py").read_text()
    (scripts / "guess_script.py").write_text(failing.replace("    pass\n", "    raise OSError('no such model')\n"))
    rivals.main(arguments)
    table = (out / "table.md").read_text()
    assert "15 train, 2 val, 12 test images; 0.1 processor minutes, seed 3" in table
    assert "| guess | failed (exit status 1): OSError: no such model |" in table
    ours = json.loads((out / "results" / "cells-petriscope-0.1min-seed3.json").read_text())
    assert ours["accuracy"] == 0.75 and ours["accuracy_ci95"] == pytest.approx([0.468, 0.911], abs=1e-3)
    assert ours["ece"] == pytest.approx(0.15)
    assert 0 < ours["processor_seconds"] < 60 and ours["peak_mib"] > 10
    assert ours["lines"] == 11

    # Only what failed is done again where its file is removed, and it is not trained again.
    (out / "results" / "cells-guess-0.1min-seed3.json").unlink()
    (scripts / "guess_script.py").write_text(failing)
    (scripts / "petriscope_script.py").unlink()
    rivals.main(arguments)
    assert times(out, "guess") == times(out, "petriscope") == 1
    rows = {row["rival"]: row for row in json.loads((out / "table.json").read_text())}
    assert rows["guess"]["accuracy"] == 0.75 and rows["guess"]["ece"] == pytest.approx(0.05)
    less = rows["guess"]["ours_less_this"]
    assert less["value"] == 0 and less["ci95"][0] < 0 < less["ci95"][1]
    assert "| guess | 75.00 (46.77 to 91.11) | +0.00 (" in (out / "table.md").read_text()


def test_predictions_are_taken_by_name_and_must_fit(rivals, tmp_path):
    truth = rivals.Truth(np.array([0, 1, 1]), ("a", "b"))
    file = tmp_path / "predictions.csv"
    file.write_text("image,b,a\n000002.png,0.9,0.1\n000000.png,0.2,0.8\n000001.png,0.3,0.7\n")
    found = rivals.read_predictions(tmp_path, truth)
    np.testing.assert_allclose(found, [[0.8, 0.2], [0.7, 0.3], [0.1, 0.9]])
    assert rivals.score(found, truth)["accuracy"] == pytest.approx(2 / 3)
    wrong = {"2 rows": "image,a,b\n0,1,0\n1,1,0\n", "'c'": "image,a,c\n0,1,0\n1,1,0\n2,1,0\n"}
    wrong["no probabilities"] = "image,a,b\n0,1,0\n1,3,-2\n2,1,0\n"
    for words, text in wrong.items():
        file.write_text(text)
        with pytest.raises(rivals.Failed, match=words):
            rivals.read_predictions(tmp_path, truth)
    file.unlink()
    with pytest.raises(rivals.Failed, match=r"wrote no predictions\.csv"):
        rivals.read_predictions(tmp_path, truth)


def test_masks_are_scored_where_they_are_labeled(rivals, tmp_path):
    true = np.zeros((4, 2, 2), dtype=np.uint8)
    true[:, 0], true[:, 1, 0] = 1, IGNORE
    truth = rivals.Truth(true, ("soil", "sand"))
    guess = np.ones_like(true)
    np.savez(tmp_path / "masks.npz", masks=guess)
    found = rivals.score(rivals.read_predictions(tmp_path, truth), truth)
    assert found["miou"] == pytest.approx((0 + 2 / 3) / 2)
    sample = rivals.sampled([np.where(true == IGNORE, 0, true), guess], truth)
    assert rivals.difference(sample[[0]], sample[[1]]).value == pytest.approx(2 / 3)
    np.savez(tmp_path / "masks.npz", masks=guess[:3])
    with pytest.raises(rivals.Failed, match=r"\[3, 2, 2\] for \[4, 2, 2\]"):
        rivals.read_predictions(tmp_path, truth)


def test_images_and_masks_are_written_as_files(rivals, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 8, 16), dtype=np.uint8)
        arrays[f"{split}_masks"] = rng.integers(0, 3, (count, 8, 16), dtype=np.uint8)
    np.savez(tmp_path / "terrain.npz", **arrays)
    rivals.prepare(str(tmp_path / "terrain.npz"), {"ignore": "0"}, tmp_path / "out")
    truth = rivals.Truth.read(tmp_path / "out" / "truth.npz")
    assert truth.dense and np.array_equal(truth.targets == IGNORE, arrays["test_masks"] == 0)
    for folder, kind in (("images/train/images", "train_images"), ("test", "test_images")):
        files = sorted((tmp_path / "out" / folder).glob("*.png"))
        np.testing.assert_array_equal([np.asarray(Image.open(file)) for file in files], arrays[kind])
    masks = [np.asarray(Image.open(file)) for file in sorted((tmp_path / "out/images/train/masks").glob("*.png"))]
    assert np.array_equal(np.stack(masks) == IGNORE, arrays["train_masks"] == 0)


def test_every_rival_has_a_script_that_trains_and_predicts(rivals):
    recipe = rivals.recipe_rival("blood/fast,data.size=28")
    for rival in (*rivals.LABELS.values(), *rivals.MASKS.values(), recipe):
        tree = ast.parse((rivals.SCRIPTS / rival.script).read_text(encoding="utf-8"))
        functions = {node.name: [arg.arg for arg in node.args.args] for node in tree.body if hasattr(node, "args")}
        more = ["name"] if rival is recipe else []
        assert functions["train"] == ["images", "work", "seconds", "seed", *more], rival
        assert functions["predict"] == ["test", "work"], rival
        assert rivals.lines_of(rivals.SCRIPTS / rival.script) > 4


def test_recipes_are_trained_beside_the_rivals(rivals, source, tmp_path, monkeypatch):
    monkeypatch.setattr(rivals, "LABELS", {})
    out, recipe = tmp_path / "out", "digits/simple-cnn,training.epochs=1,training.batch_size=8"
    rivals.main(["--data", f"cells={source}", "--minutes", "1", "--out", str(out), "--recipes", recipe, "digits/none"])
    rows = {row["rival"]: row for row in json.loads((out / "table.json").read_text())}
    assert "digits/none" in rows["digits/none"]["failed"]
    assert 0 <= rows[recipe]["accuracy"] <= 1 and list(rows[recipe]["versions"]) == ["torch", "petriscope"]
    run = next((out / "work").glob("*batch_size*/run"))
    written = (run / "recipe.yaml").read_text()
    assert "epochs: 1" in written and "batch_size: 8" in written and str(out / "data" / "cells" / "images") in written


def test_an_interval_that_is_undefined_is_left_out(rivals):
    assert rivals.percent(0.5, (float("nan"), float("nan"))) == "50.00"
    assert rivals.percent(0.015, (0.01, 0.02), "+") == "+1.50 (+1.00 to +2.00)"


def test_what_cannot_be_asked_for_is_said(rivals):
    with pytest.raises(SystemExit, match="--data takes NAME=SOURCE"):
        rivals.main(["--data", "cells"])
    with pytest.raises(SystemExit, match="there is no rival tensorflow; there are petriscope, torchvision"):
        rivals.main(["--data", "cells=x.npz", "--rivals", "tensorflow"])


def test_folds_are_scored_together(rivals, scripts, source, tmp_path):
    out = tmp_path / "out"
    arguments = ["--data", f"cells={source},folds=2", "--minutes", "0.1", "--seeds", "3", "--out", str(out)]
    rivals.main([*arguments, "--rivals", "petriscope"])
    held = [rivals.Truth.read(out / "data" / f"cells-fold{fold}" / "truth.npz").targets for fold in (1, 2)]
    assert sorted(len(each) for each in held) == [17, 17]  # train and val of the source; its test images are not used
    assert np.concatenate(held).sum() == 12
    (out / "results" / "cells-fold2-petriscope-0.1min-seed3.json").unlink()
    rivals.write_table(out)
    assert json.loads((out / "table.json").read_text()) == []  # a fold is missing
    rivals.main(arguments)
    rows = {row["rival"]: row for row in json.loads((out / "table.json").read_text())}
    ours, guess = rows["petriscope"], rows["guess"]
    assert ours["accuracy"] == pytest.approx(22 / 34) and ours["test"] == 34
    assert ours["each"] == pytest.approx([11 / 17] * 2) and guess["ours_less_this"]["value"] == 0
    assert ours["accuracy_ci95"] == pytest.approx([0.479, 0.785], abs=2e-3)
    assert "34 test images, in 2 folds; 0.1 processor minutes" in (out / "table.md").read_text()


def test_a_fold_that_failed_is_named(rivals):
    row = {
        "rival": "guess",
        "minutes": 1,
        "seed": 0,
        "lines": 9,
        "machine": {},
        "threads": "1",
        "folds": 2,
        "of": "cells",
    }
    row |= {
        "train": 10,
        "val": 2,
        "test": 5,
        "accuracy": 0.5,
        "processor_seconds": 60,
        "wall_seconds": 70,
        "peak_mib": 9,
    }
    rows = [{**row, "data": "cells-fold1"}, {**row, "data": "cells-fold2", "failed": "failed (exit status 1): no"}]
    assert rivals.pooled(rows)[0]["failed"] == "cells-fold2 failed (exit status 1): no"
