"""A run that applies the decisions of an audit says so in its files and on its page, and resumes and evaluates with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from petriscope import api
from petriscope.core.errors import DataError
from petriscope.core.recipe import DataSection
from petriscope.data import load_dataset
from petriscope.data.decisions import load_decisions, write_decisions
from petriscope.run.folder import Run


@pytest.fixture
def audited(tiny_npz: Path, tmp_path: Path) -> Path:
    """An audit of the tiny set with edited decisions: one train image and one test image are dropped, one is relabeled."""
    _, folder = api.audit(str(tiny_npz), tmp_path / "audit", labels=False, features=None, quiet=True)
    made = load_decisions(folder)
    data = load_dataset(DataSection(source=str(tiny_npz)))
    digests = {
        name: digest.hex()
        for part in data.splits.values()
        for name, digest in zip(part.ids.tolist(), part.digests(), strict=True)
    }
    wanted = {"train/0": ("drop", None), "test/0": ("drop", None), "train/1": ("relabel", "0")}
    entries = tuple(
        {"id": name, "decision": verdict, "label": label, "reason": f"because {name}", "digest": digests[name]}
        for name, (verdict, label) in wanted.items()
    )
    write_decisions(folder / "decisions.yaml", type(made).model_validate({**made.model_dump(), "decisions": entries}))
    return folder


def test_the_run_says_what_was_left_out(tiny_recipe: Any, audited: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(audited.parent)
    recipe = tiny_recipe(data={"audit": "audit"}, training={"epochs": 1})
    run = api.train(recipe, tmp_path / "run", quiet=True)
    assert run.recipe.data.audit == str(audited)
    assert run.environment.data.audited == {"drop": {"train": 1, "test": 1}, "relabel": {"train": 1}}
    assert run.environment.data.splits["train"].images == 119
    table = run.audited
    assert table["id"].tolist() == ["train/0", "train/1", "test/0"]
    assert table["reason"].tolist() == [f"because {name}" for name in table["id"]]

    monkeypatch.chdir(tmp_path.parent)
    assert api.evaluate(run.folder, quiet=True).n == 39
    assert "test/0" not in run.predictions["id"].tolist()
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "because train/1" in page


def test_a_run_without_an_audit_has_no_such_table(tiny_recipe: Any, tmp_path: Path) -> None:
    run = api.train(tiny_recipe(training={"epochs": 1}), tmp_path / "run", quiet=True)
    assert run.environment.data.audited == {}
    assert not (run.folder / "audited.csv").exists() and len(run.audited) == 0
    assert "audited.csv" not in (run.folder / "report.html").read_text(encoding="utf-8")


def test_a_run_whose_decisions_were_edited_is_not_resumed(tiny_recipe: Any, audited: Path, tmp_path: Path) -> None:
    run = api.train(tiny_recipe(data={"audit": str(audited)}, training={"epochs": 1}), tmp_path / "run", quiet=True)
    (run.folder / "results.json").unlink()
    path = audited / "decisions.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("decision: drop", "decision: keep"), encoding="utf-8")
    with pytest.raises(DataError, match="have changed since"):
        api.resume(run.folder, quiet=True)


def test_an_audit_that_cannot_be_applied_leaves_no_run(tiny_recipe: Any, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no decisions at"):
        api.train(tiny_recipe(data={"audit": str(tmp_path / "nowhere")}), tmp_path / "run", quiet=True)
    assert not Run(tmp_path / "run").folder.exists()
