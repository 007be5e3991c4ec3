"""From the boxes of a labelling tool to a model of single objects, and from outlines to a model of masks."""

from pathlib import Path

import pytest
from PIL import Image
from small_exports import make_export

from petriscope import api
from petriscope.core.recipe import load_recipe
from petriscope.data import load_dataset
from petriscope.run.folder import open_run

SMALL = {"name": "simple-cnn", "norm": "batch", "widths": [4, 8, 8], "hidden": 8}


def recipe(source: Path, model: dict, **data: object):
    return load_recipe(
        "demo",
        (),
        name="objects",
        data={"source": str(source), "size": 16, **data},
        augment=[],
        model=model,
        training={"epochs": 1, "batch_size": 8, "precision": "fp32", "device": "cpu", "ema": None},
        evaluation={"bootstrap": 100, "stress": "off"},
    )


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETRISCOPE_CACHE", str(tmp_path / "cache"))


def test_a_model_of_single_objects(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make_export(tmp_path / "set", "coco")
    api.train(recipe(tmp_path / "set", SMALL, crop={"margin": 0.1}), tmp_path / "run", quiet=True)
    run = open_run(tmp_path / "run")
    assert run.results.val is not None and (run.results.val.n, run.results.val.groups) == (3, 1)
    assert run.membership.ids[0] == "images/train/s0.png#0"
    (tmp_path / "set").rename(tmp_path / "moved")
    assert api.evaluate(run.folder, data=tmp_path / "moved", split="val", quiet=True).n == 3
    Image.new("RGB", (16, 16)).save(tmp_path / "one.png")
    capsys.readouterr()
    table = api.predict(run.folder, tmp_path / "one.png")
    assert len(table) == 1 and "an image here must show one object" in capsys.readouterr().err


def test_decisions_about_single_objects_are_carried_out(tmp_path: Path) -> None:
    make_export(tmp_path / "set", "cvat", splits=False)
    (tmp_path / "set/images/s2.png").write_bytes((tmp_path / "set/images/s0.png").read_bytes())
    (tmp_path / "set/images/s1.png").write_bytes(b"x")
    section = recipe(tmp_path / "set", SMALL, crop={"margin": 0.1}).data
    audit, folder = api.audit(tmp_path / "set", tmp_path / "audit", section, labels=False, features=None, quiet=True)
    assert len(audit.images) == 12
    found = {entry.id for entry in audit.decisions.decisions}
    assert {"images/s0.png#1", "images/s2.png#1"} <= found and all("#" in id for id in found)
    assert "1 image cannot be read: images/s1.png" in (folder / "report.html").read_text()
    data = load_dataset(section.model_copy(update={"audit": str(folder)}))
    assert {each.id for each in data.audited} == {
        each.id for each in audit.decisions.decisions if each.decision == "drop"
    }


def test_a_model_of_outlines(tmp_path: Path) -> None:
    make_export(tmp_path / "set", "yolo", outlines=True)
    api.train(recipe(tmp_path / "set", {"name": "unet", "widths": [4, 8]}), tmp_path / "run", quiet=True)
    run = open_run(tmp_path / "run")
    assert run.results.val is not None and run.results.val.n == 1
