"""petriscope audit and train --audit, as scripts see them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from petriscope import api, cli
from petriscope.core.errors import PetriscopeError, RequestError

FILES = {"findings.csv", "findings.parquet", "decisions.yaml", "summary.json", "report.html"}


@pytest.fixture
def leaky(tmp_path: Path, monkeypatch: Any) -> Path:
    """An npz in which a test image is in train too, and two copies in train have different labels."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    arrays = {f"{split}_images": rng.integers(0, 256, (10, 12, 12, 3), dtype=np.uint8) for split in ("train", "test")}
    arrays["train_images"][3] = arrays["test_images"][5]
    arrays["train_images"][7] = arrays["train_images"][2]
    labels = {f"{split}_labels": np.arange(10) % 2 for split in ("train", "test")}
    labels["train_labels"][3] = labels["test_labels"][5]
    np.savez(tmp_path / "cells.npz", **arrays, **labels)
    return tmp_path / "cells.npz"


def command(*args: Any) -> None:
    cli.app([str(arg) for arg in args], standalone_mode=False)


def test_the_folder_is_complete_and_named_after_the_source(leaky: Path, capsys: Any) -> None:
    command("audit", leaky, "--quick")
    command("audit", leaky, "--quick")
    for name in ("audits/cells", "audits/cells-2"):
        assert {path.name for path in Path(name).iterdir()} == FILES
    assert sorted(path.name for path in Path("audits").iterdir()) == ["cells", "cells-2"]
    out, err = capsys.readouterr()
    assert "2  leak\n2  conflicting labels\n" in out
    assert "petriscope train RECIPE --data" in err and "--audit audits/cells" in err


def test_json_is_one_object_and_nothing_else(leaky: Path, capsys: Any) -> None:
    command("audit", leaky, "--quick", "--json", "--out", "found")
    out, _ = capsys.readouterr()
    said = json.loads(out)
    assert out.count("\n") == 1
    assert (said["n"], said["out"], said["source"]) == (20, "found", str(leaky))
    assert said["findings"]["leak"] == 2 and said["findings"]["outlier"] == 0
    assert said["per_split"]["train"]["decisions"] == {"drop": 1, "relabel": 0, "review": 2, "keep": 0}
    assert {**json.loads(Path("found/summary.json").read_text()), "out": "found"} == said


def test_findings_are_no_failure_unless_they_are_named(leaky: Path, capsys: Any) -> None:
    command("audit", leaky, "--quick", "--out", "a", "--fail-on", "outliers,planted")
    with pytest.raises(PetriscopeError, match="leak 2, conflicting_labels 2; see b") as caught:
        command("audit", leaky, "--quick", "--out", "b", "--json", "--fail-on", "leaks,conflicts,blank")
    assert caught.value.exit_status == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["out"] == "b"
    assert {path.name for path in Path("b").iterdir()} == FILES


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["nowhere.npz"], "no data source"),
        (["cells.npz", "--fail-on", "leeks"], "did you mean leaks"),
        (["cells.npz", "--features", "resnet81"], "did you mean resnet18"),
        (["cells.npz", "--set", "data.sise=8"], "did you mean size"),
        (["cells.npz", "--set", "seed=8"], "only the keys of data"),
        (["cells.npz", "--out", "full"], "exists and is not empty"),
    ],
)
def test_a_wrong_request_leaves_nothing_behind(args: list[str], says: str, leaky: Path) -> None:
    Path("full").mkdir()
    Path("full/x").touch()
    with pytest.raises(RequestError, match=says) as caught:
        command("audit", *args)
    assert caught.value.exit_status == 2
    assert {path.name for path in Path.cwd().iterdir()} == {"cells.npz", "full"}


def test_an_audit_stopped_while_it_is_written_leaves_nothing_behind(leaky: Path, monkeypatch: Any) -> None:
    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "write_audit_page", stop)
    with pytest.raises(KeyboardInterrupt):
        api.audit(leaky, labels=False, features=None, quiet=True)
    assert not list(Path("audits").iterdir())


def test_settings_say_how_the_source_is_read(leaky: Path, capsys: Any) -> None:
    command("audit", leaky, "--quick", "--json", "--set", "data.size=8", "--set", "data.channels=gray")
    assert json.loads(capsys.readouterr().out)["shape"] == [8, 8, 1]


def test_training_takes_the_decisions(leaky: Path, capsys: Any) -> None:
    command("audit", leaky, "--quick", "--out", "found", "--quiet")
    settings = ["training.epochs=1", "model.widths=[4,4,4]", "model.hidden=4", "training.device=cpu"]
    options = [word for setting in settings for word in ("--set", setting)]
    command("train", "demo", "--data", leaky, "--audit", "found", "--out", "run", *options)
    assert Path("run/audited.csv").read_text().splitlines()[1].startswith('train/3,train,1,drop,,"leaks from test')
    assert "leave out 1 images and relabel 0: run/audited.csv" in capsys.readouterr().err
    with pytest.raises(RequestError, match="--resume cannot be combined"):
        command("train", "--resume", "run", "--audit", "found")


def test_help_names_the_command_and_imports_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, petriscope.cli, petriscope.audit; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
