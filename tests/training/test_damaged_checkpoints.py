"""Checkpoints that are damaged, or of another model: one sentence that says what to do, before any step."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from petriscope import api
from petriscope.core.errors import PetriscopeError
from petriscope.run.folder import Run
from petriscope.training.checkpoints import load_checkpoint, save_checkpoint

OLD = Path(__file__).parents[1] / "runs_of_0_1" / "interrupted"


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(shutil.copytree(OLD, tmp_path / "run"))


def refused(run: Run, says: str) -> None:
    before = run.checkpoint.read_bytes()
    with pytest.raises(
        PetriscopeError, match=rf"state\.safetensors[ :].*{says}.*; delete it to train this run from the start"
    ):
        api.resume(run.folder, quiet=True)
    assert run.checkpoint.read_bytes() == before


def test_a_recipe_of_another_model_is_named_with_the_tensor(run):
    path = run.folder / "recipe.yaml"
    tree = yaml.safe_load(path.read_text())
    tree["model"]["widths"] = [6, *tree["model"]["widths"][1:]]
    path.write_text(yaml.safe_dump(tree))
    refused(run, r"do not fit the model of recipe\.yaml; of another shape: ")


@pytest.mark.parametrize(
    "change",
    [
        {"position": None}, {"position": {}}, {"position": {"epoch": -1, "history": []}}, {"position": {"epoch": "x"}},
        {"position": {"history": [{"epoch": "one"}]}}, {"position": {"history": [3]}}, {"schedule": None, "position": 3},
        {"optimizer": {"999.step": 3}}, {"optimizer": {"x.step": 3}}, {"optimizer": None},
    ],
)  # fmt: skip
def test_odd_facts(run, change):
    tensors, facts = load_checkpoint(run.checkpoint)
    save_checkpoint(run.checkpoint, tensors, {**facts, **change})
    refused(run, "")


@pytest.mark.parametrize("group", ["model", "ema", "best", "optimizer", "sums"])
@pytest.mark.parametrize("values", [torch.zeros(1, 2, 3), None])
def test_odd_tensors(run, group, values):
    tensors, facts = load_checkpoint(run.checkpoint)
    assert group in tensors
    if values is None and group not in ("optimizer", "best"):
        del tensors[group]
    else:
        tensors[group] = dict.fromkeys(tensors[group], torch.zeros(1, 2, 3)) | {"9999.x": torch.zeros(2)}
    save_checkpoint(run.checkpoint, tensors, facts)
    refused(run, "")


@pytest.mark.parametrize("size", [0, 7, 300, -1])
def test_a_cut_file(run, size):
    run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:size])
    refused(run, "")
