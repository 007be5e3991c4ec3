"""Four channels with 16 bits from the command line: trained, tested, explained, audited, predicted, compared, exported."""

import asyncio
import json
import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
import yaml
from PIL import Image

from petriscope.core.errors import RequestError
from petriscope.data.decisions import load_decisions
from petriscope.inference.package import Package
from petriscope.run.folder import open_run
from petriscope.ship.page import write_page
from petriscope.ship.server.opening import open_model
from petriscope.ship.server.trial import try_out

NAMES = ("DAPI", "GFP", "RFP", "Cy5")
TOP = 8191  # of a camera with 13 bits


def drawn(count, seed=0):
    """Discs that are bright in DAPI, and in GFP or RFP by their class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    y, x = np.mgrid[:16, :16]
    images = rng.normal(300, 40, (count, 16, 16, 4))
    for image, label in zip(images, labels, strict=True):
        disc = np.hypot(y - rng.uniform(6, 10), x - rng.uniform(6, 10)) < rng.uniform(3, 5)
        for channel, low in ((0, 2500), (1 + label, 1500), (3, 0)):
            image[..., channel] += disc * rng.uniform(low, low + 2500)
    return images.clip(0, TOP).round().astype(np.uint16), labels


@pytest.fixture
def cells(tmp_path):
    arrays = {"classes": np.array(["gfp", "rfp"]), "channels": np.array(NAMES)}
    for split, count in (("train", 64), ("val", 32), ("test", 24)):
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = drawn(count, count)
    np.savez(tmp_path / "cells.npz", **arrays)
    for number, image in enumerate(arrays["test_images"][:3]):
        np.save(tmp_path / f"{number}.npy", image)
    tree = {
        "name": "four",
        "data": {"source": "cells.npz", "depth": 16, "bits": 13},
        "model": {"name": "simple-cnn", "norm": "batch", "widths": [4, 8, 8], "hidden": 8},
        "augment": ["flip", "brightness", "contrast"],
        "optimizer": {"name": "adamw", "lr": 0.01},
        "training": {"epochs": 3, "batch_size": 16, "precision": "fp32", "device": "cpu"},
        "evaluation": {"bootstrap": 100, "stress": "off"},
    }
    (tmp_path / "four.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path


@pytest.mark.slow
def test_all_the_way(petriscope, cells):
    status, _, err = petriscope("train", "four.yaml", "--out", "run")
    assert status == 0, err
    assert "16x16x4 with 16 bits" in err and "none is called red, green or blue" in err
    assert open_run("run").recipe.data.channels == NAMES  # known from now on, whatever the source says later

    status, out, err = petriscope("evaluate", "run", "--json", "--stress", "--stress-images", 8)
    assert status == 0, err
    assert json.loads(out)["n"] == 24 and json.loads(out)["accuracy"] > 0.8
    stress = open_run("run").results.stress["test"]
    assert "jpeg" in stress.corruptions and "saturation" not in stress.corruptions

    status, out, err = petriscope("predict", "run", "0.npy", "1.npy")
    assert status == 0, err
    assert len(out.splitlines()) == 3

    np.save(cells / "three.npy", np.zeros((16, 16, 3), np.uint16))
    status, out, err = petriscope("predict", "run", "0.npy", "three.npy")
    assert status == 1 and "names 4 channels" in err

    status, _, err = petriscope("explain", "run", "0.npy", "--out", "maps")
    assert status == 0 and len(list((cells / "maps").glob("*.png"))) == 1, err

    status, _, err = petriscope("report", "run")
    page = (cells / "run" / "report.html").read_text()
    assert status == 0 and "GFP in green" in page and "16 bits per value" in page

    settings = ("--set", "data.depth=16", "--set", "data.bits=13")
    status, _, err = petriscope("audit", "cells.npz", "--quick", "--out", "audit", *settings)
    assert status == 0, err
    assert "256 levels" in json.dumps(json.loads((cells / "audit" / "summary.json").read_text())["notes"])
    read_as = load_decisions("audit").read_as
    assert (read_as.channels, read_as.depth, read_as.bits) == (NAMES, 16, 13)
    status, _, err = petriscope("data", "cells.npz", *settings, "--set", "data.audit=audit")
    assert status == 0, err

    status, _, err = petriscope("train", "four.yaml", "--out", "other", "--seed", 1, "--quiet")
    assert status == 0, err
    status, _, err = petriscope("compare", "run", "other", "--out", "compared.html")
    assert status == 0, err

    more = np.load(cells / "cells.npz")
    np.savez(cells / "more.npz", **{name: more[name] for name in more.files if not name.startswith("train")})
    status, out, err = petriscope("evaluate", "run", "--data", "more.npz", "--json")
    assert status == 0, err
    np.savez(cells / "new.npz", train_images=drawn(24, 5)[0], train_labels=drawn(24, 5)[1], channels=np.array(NAMES))
    status, _, err = petriscope("adapt", "run", "--data", "new.npz", "--out", "adapted")
    assert status == 0, err


@pytest.mark.slow
def test_shipped(petriscope, cells):
    petriscope("train", "four.yaml", "--out", "run", "--quiet")
    status, _, err = petriscope("export", "run", "--out", "package")
    assert status == 0, err
    made = json.loads((cells / "package" / "package.json").read_text())["input"]
    assert (made["depth"], made["bits"], made["names"]) == (16, 13, list(NAMES))
    graph = Package(cells / "package")._session.session.get_inputs()[0]
    assert graph.type == "tensor(uint16)"

    status, _, err = petriscope("verify", "package")
    assert status == 0, err
    _, ours, _ = petriscope("predict", "run", "0.npy", "1.npy", "2.npy")
    _, theirs, _ = petriscope("predict", "package", "0.npy", "1.npy", "2.npy")
    assert [line.split(",")[:2] for line in ours.splitlines()] == [line.split(",")[:2] for line in theirs.splitlines()]
    alone = subprocess.run(
        [sys.executable, "-I", "package/predict.py", "0.npy", "1.npy", "2.npy"],
        cwd=cells,
        capture_output=True,
        text=True,
    )
    assert alone.returncode == 0, alone.stderr
    assert [line.split(",")[1] for line in alone.stdout.splitlines()] == [
        line.split(",")[1] for line in theirs.splitlines()
    ]

    pytest.importorskip("fastapi")
    from serving import serving

    for model in ("run", "package"):
        served = open_model(model, "cpu")
        try_out(served, 3)
        row, seen = asyncio.run(_asked(serving(served), (cells / "0.npy").read_bytes()))
        assert row["predicted"] == ours.splitlines()[1].split(",")[1]
        assert seen.status_code == 200 and Image.open(BytesIO(seen.content)).mode == "RGB"

    with pytest.raises(RequestError, match="16 bits"):
        write_page(cells / "package", cells / "page.html")


async def _asked(server, content):
    files = [("file", ("0.npy", content))]
    async with server as (client, _):
        answer = await client.post("/predict", files=files)
        return answer.json()["rows"][0], await client.post("/overlay", files=files, params={"plain": 1})
