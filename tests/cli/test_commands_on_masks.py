"""The commands on masks: what scripts get, and what people read."""

import json
import re

import numpy as np
import pytest
from PIL import Image

SMALL = ("data.size=[8,12]", "model.widths=[4,8]", "training.epochs=1", "evaluation.bootstrap=100")


def test_from_training_to_metrics(petriscope, tmp_path):
    settings = [word for setting in SMALL for word in ("--set", setting)]
    folder = tmp_path / "run"
    status, out, err = petriscope(
        "train", "synthetic-terrain/unet", "--data", "synthetic-terrain:80", *settings, "--out", folder
    )
    assert status == 0 and out == ""
    assert "Mean IoU" in err and "big rock" in err
    status, out, err = petriscope("evaluate", folder, "--json", "--tta", "mirror")
    result = json.loads(out)
    assert status == 0 and err == ""
    assert {"n", "miou", "miou_ci95", "pixel_accuracy", "per_class", "boundary_f1", "tta"} <= set(result)
    assert result["tta"] == "mirror" and set(result["per_class"]) == {"soil", "bedrock", "sand", "big rock"}
    status, _, err = petriscope("evaluate", folder, "--stress", "--stress-images", "4")
    assert status == 0 and "Pixel accuracy" in err and "F1" not in err.replace("Boundary F1", "")
    assert "stress test, 4 of" in err and "images; mean IoU in %" in err
    Image.new("L", (12, 8), 90).save(tmp_path / "a.png")
    status, out, err = petriscope("predict", folder, tmp_path / "a.png", "--out", tmp_path / "masks")
    assert status == 0 and out == ""
    assert {path.name for path in (tmp_path / "masks").iterdir()} >= {"a.png", "masks.csv"}
    status, _, err = petriscope("predict", folder, tmp_path / "a.png")
    assert status == 2 and "--out" in err
    status, _, err = petriscope("calibrate", folder)
    assert status == 2 and "only classification models" in err


def test_a_source_of_masks_is_described_by_its_pixels(petriscope):
    status, out, _ = petriscope("data", "synthetic-terrain:32")
    assert status == 0
    pixels = next(line for line in out.splitlines() if line.startswith("all labeled pixels"))
    assert sum(int(word.replace(",", "")) for word in pixels.split()[3:]) > 10_000
    assert out.splitlines()[-1].startswith("all images")


@pytest.mark.parametrize("values", [[0, 100, 200], [1, 2, 3], [0, 70000], [[0, 0, 0], [255, 0, 0], [9, 8, 7]]])
def test_what_a_message_about_masks_says_to_set_mends_it(values, petriscope, tmp_path):
    rng = np.random.default_rng(0)
    for index in range(8):
        stored = np.array(values)[rng.integers(0, len(values), (8, 12))]
        mask = Image.fromarray(stored.astype(np.int32) if stored.ndim == 2 else stored.astype(np.uint8))
        for name, image in (("images", Image.new("L", (12, 8), 20 * index + 40)), ("masks", mask)):
            (tmp_path / name).mkdir(exist_ok=True)
            image.save(tmp_path / name / f"{index}.tif")
    status, _, err = petriscope("data", tmp_path)
    assert status == 2
    status, out, _ = petriscope("data", tmp_path, "--set", re.search(r"--set (data\.mask_values=\S+\])", err).group(1))
    assert status == 0 and next(line for line in out.splitlines() if "labeled pixels" in line).split()[3] == "576"


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
    assert status == 2 and "one class per pixel" in err and not (tmp_path / "r").exists()
