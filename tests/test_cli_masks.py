"""The command line on masks: what scripts get, and what people read."""

import json
import sys

import numpy as np
import pytest

from petriscope import cli


@pytest.fixture
def petriscope(monkeypatch, capsys):
    """Run a command in this process: exit status, stdout, stderr."""
    monkeypatch.setattr(cli, "_settle_process", lambda: None)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["petriscope", *map(str, args)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr()
        return left.value.code or 0, said.out, said.err

    return run


SMALL = ("data.size=[8,12]", "model.widths=[4,8]", "training.epochs=1", "evaluation.bootstrap=100")


def test_from_training_to_metrics(petriscope, tmp_path):
    settings = [word for setting in SMALL for word in ("--set", setting)]
    folder = tmp_path / "run"
    status, out, err = petriscope(
        "train", "synthetic-terrain/unet", "--data", "synthetic-terrain:80", *settings, "--out", folder
    )
    assert status == 0 and out == ""
    assert "val mean IoU" in err and "big rock" in err
    status, out, err = petriscope("evaluate", folder, "--json", "--tta", "mirror")
    result = json.loads(out)
    assert status == 0 and err == ""
    assert {"n", "miou", "miou_ci95", "pixel_accuracy", "per_class", "boundary_f1", "tta"} <= set(result)
    assert result["tta"] == "mirror" and set(result["per_class"]) == {"soil", "bedrock", "sand", "big rock"}
    status, _, err = petriscope("evaluate", folder, "--stress", "--stress-images", "4")
    assert status == 0 and "mean IoU" in err and "pixel accuracy" in err and "macro f1" not in err
    assert "stress test, 4 of" in err and "images; mean IoU in %" in err and "disturbed mean" in err


def test_a_source_of_masks_is_described_by_its_pixels(petriscope):
    status, out, _ = petriscope("data", "synthetic-terrain:32")
    assert status == 0
    pixels = next(line for line in out.splitlines() if line.startswith("labeled pixels"))
    assert sum(int(word.replace(",", "")) for word in pixels.split()[2:]) > 10_000
    assert out.splitlines()[-1].startswith("all images")


def test_wrong_requests_exit_with_2(petriscope, tmp_path):
    np.savez(tmp_path / "x.npz", train_images=np.zeros((4, 8, 8), np.uint8), train_masks=np.zeros((4, 8, 9), np.uint8))
    status, out, err = petriscope("data", tmp_path / "x.npz")
    assert status == 2 and out == "" and "height and width" in err
    status, _, err = petriscope(
        "train",
        "synthetic-terrain/unet",
        "--data",
        "synthetic-terrain:16",
        "--set",
        "model=simple-cnn",
        "--out",
        tmp_path / "r",
    )
    assert status == 2 and "choose a model of masks" in err and not (tmp_path / "r").exists()
