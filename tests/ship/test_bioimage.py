"""Model folders of bioimage.io give the answers of the package that they are made of."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from color_package import images, write_package
from petriscope import api, cli
from petriscope.core.errors import PetriscopeError, RequestError
from petriscope.inference.package import MANIFEST, Package, digest
from petriscope.ship.bioimage import CLASSIFIES, LABELS, SEGMENTS, check_request, write_bioimageio

pytest.importorskip("onnx")
OUTPUTS = {"classification": tuple(CLASSIFIES), "multilabel": tuple(LABELS), "segmentation": ("classes", "confidence")}


def complete(folder: Path, task: str = "classification", **changed: np.ndarray) -> Path:
    """A package that verifies itself.

    Args:
        changed: of what it is to answer on its test images.
    """
    write_package(folder, task)
    package, pixels = Package(folder), images(6)
    found = package.run(pixels)
    answers = {name: found[name] for name in OUTPUTS[task]}
    names = np.array([f"{number}.png" for number in range(6)])
    np.savez(folder / "tests" / "vectors.npz", names=names, images=pixels, **{**answers, **changed})
    (folder / "README.md").write_text("---\nlicense: other\n---\n# colors\n", encoding="utf-8")
    tree = json.loads((folder / MANIFEST).read_text())
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]
    tree["files"] = {path.relative_to(folder).as_posix(): digest(path) for path in files}
    (folder / MANIFEST).write_text(json.dumps(tree))
    return folder


@pytest.fixture
def needed():
    """Skip where the libraries are missing, or do not fit one another."""
    try:
        check_request(None)
    except RequestError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("task", OUTPUTS)
def test_it_gives_the_same_answers(needed, tmp_path, capsys, monkeypatch, task):
    package, out = complete(tmp_path / "package", task), tmp_path / "model"
    words = ("export", package, "--format", "bioimageio", "--license", "mit", "--out", out, "--json")
    monkeypatch.setattr(sys, "argv", ["petriscope", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert json.loads(capsys.readouterr().out)["folder"] == str(out)
    from bioimageio.core import load_model_description, predict

    described = load_model_description(out / "bioimageio.yaml")
    assert described.license == "MIT" and described.inputs[0].dtype == "uint8"
    assert str(tmp_path) not in (out / "bioimageio.yaml").read_text()
    pixels = images(5, seed=8)
    found, expected = predict(model=described, inputs=pixels), Package(package).run(pixels)
    assert [str(each) for each in found.members] == list(SEGMENTS if task == "segmentation" else OUTPUTS[task])
    for name, values in found.members.items():
        np.testing.assert_allclose(values.data, expected[str(name)], rtol=1e-5, atol=1e-6)


def test_one_that_answers_otherwise_is_not_kept(needed, tmp_path):
    package = complete(tmp_path / "package", label=np.full(6, 7))
    with pytest.raises(PetriscopeError, match=r"was not kept\. Of 6 test images: 24 with another label"):
        write_bioimageio(package, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_an_unknown_license_is_refused(needed, tmp_path):
    with pytest.raises(RequestError, match="not mine"):
        api.export_bioimageio(complete(tmp_path / "package"), tmp_path / "model", license="mine")


def test_releases_that_do_not_fit_are_named(monkeypatch):
    installed = {"bioimageio.spec": "0.5.12.0", "bioimageio.core": "0.11.0", "pydantic": "2.13.4"}
    monkeypatch.setattr("petriscope.ship.bioimage.metadata.version", installed.__getitem__)
    with pytest.raises(RequestError, match=r"bioimageio\.spec 0\.5\.12\.0 does not work with pydantic 2\.13\.4"):
        check_request(None)
