"""Several sources on the command line, from a recipe to a report and back."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml

from petriscope import api
from petriscope.inference.predictor import load_model


@pytest.fixture
def two(tiny_npz, tmp_path):
    """Two sources of the layout of `tiny_npz`, the second smaller and darker."""
    arrays = dict(np.load(tiny_npz))
    other = {name: array[: len(array) // 2] for name, array in arrays.items()}
    for split in ("train", "val", "test"):
        other[f"{split}_images"] = other[f"{split}_images"] // 2 + 7
    np.savez(tmp_path / "other.npz", **other)
    return {"blood": str(tiny_npz), "bccd": str(tmp_path / "other.npz")}


def weights_of(run):
    return load_model(run.model).model.state_dict()


def test_with_equal_weights_training_is_that_of_all_images_together(two, tiny_recipe, tmp_path):
    parts = [np.load(two[name]) for name in sorted(two)]
    np.savez(tmp_path / "joined.npz", **{key: np.concatenate([part[key] for part in parts]) for key in parts[0]})
    joined = api.train(tiny_recipe(data={"source": str(tmp_path / "joined.npz")}), tmp_path / "a", quiet=True)

    def several(place, **weights):
        sources = {name: {"source": path, "weight": weights.get(name, 1)} for name, path in two.items()}
        return api.train(tiny_recipe(data={"source": None, "sources": sources}), tmp_path / place, quiet=True)

    same, other = several("b"), several("c", bccd=3)
    pairs = zip(weights_of(joined).values(), weights_of(same).values(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    assert [e.train for e in joined.history] == [e.train for e in same.history]
    assert [e.train for e in other.history] != [e.train for e in same.history], "a weight changes nothing"
    assert joined.results.val.value("accuracy") == same.results.val.value("accuracy")


def test_from_sources_to_a_table_by_domain(petriscope, two, tiny_recipe, tmp_path):
    recipe = tiny_recipe(data={"source": None, "sources": two}, training={"epochs": 1})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    status, _, err = petriscope("train", "recipe.yaml", "--out", "run")
    assert status == 0 and "blood=" in err

    status, out, _ = petriscope("evaluate", "run", "--json")
    rows = json.loads(out)["by"]["domain"]["rows"]
    assert status == 0 and {row["name"]: row["n"] for row in rows} == {"blood": 40, "bccd": 20}
    status, _, err = petriscope("evaluate", "run", "--by", "domain")
    assert status == 0 and "Worst by domain: " in err
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Test by domain" in page and "blood (train 120, val 40, test 40)" in page

    status, _, err = petriscope("evaluate", "run", "--by", "scanner")
    assert status == 2 and err.strip().endswith("no column 'scanner'; known: domain") and "Traceback" not in err

    shutil.move(two["bccd"], tmp_path / "moved.npz")
    status, _, err = petriscope("evaluate", "run")
    assert status == 2 and "no data source" in err
    status, out, _ = petriscope("evaluate", "run", "--data", f"bccd={tmp_path / 'moved.npz'}", "--json")
    assert status == 0 and json.loads(out)["n"] == 60
    status, _, err = petriscope("evaluate", "run", "--data", f"bccd={two['blood']}")
    assert status == 2 and "says where the model's own data are, but what is there is not the same" in err


def test_leaving_out_each_domain(petriscope, two, tiny_recipe, tmp_path):
    recipe = tiny_recipe(data={"source": None, "sources": two}, training={"epochs": 1})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    for domain, size in (("blood", 200), ("bccd", 100)):
        run = f"without-{domain}"
        status, _, err = petriscope("train", "recipe.yaml", "--set", f"data.leave_out={domain}", "--out", run, "--test")
        assert status == 0 and f"test, {size} images" in err
        assert f"data.leave_out: test is the domain {domain}" in err
    status, _, err = petriscope("train", "recipe.yaml", "--set", "data.leave_out=blod")
    assert status == 2 and "did you mean blood" in err
    status, _, err = petriscope("train", "recipe.yaml", "--data", "digits")
    assert status == 2 and "keep one" in err


def test_an_interrupted_run_of_several_sources_is_resumed(two, tiny_recipe, tmp_path, monkeypatch):
    from petriscope.core.errors import Interrupted
    from petriscope.training.loop import Trainer

    sources = {name: {"source": path, "weight": 1 + 2 * (name == "bccd")} for name, path in two.items()}
    recipe = tiny_recipe(data={"source": None, "sources": sources})
    straight = api.train(recipe, tmp_path / "straight", quiet=True)
    once, step = Trainer._run_epoch, []

    def stopping(self, stop):
        step.append(1)
        if len(step) == 2:
            stop.set()
        return once(self, stop)

    monkeypatch.setattr(Trainer, "_run_epoch", stopping)
    with pytest.raises(Interrupted):
        api.train(recipe, tmp_path / "stopped", quiet=True)
    monkeypatch.setattr(Trainer, "_run_epoch", once)
    resumed = api.resume(tmp_path / "stopped", quiet=True)
    assert all(
        torch.equal(*pair) for pair in zip(weights_of(straight).values(), weights_of(resumed).values(), strict=True)
    )
    assert yaml.safe_load((resumed.folder / "recipe.yaml").read_text())["data"]["sources"]["bccd"]["weight"] == 3
