"""`petriscope data` on sources of every kind: what it understood, as text, as JSON and as a sheet of images."""

import json
import re
import shutil

import numpy as np
import pytest
from formats import FORMATS, GROUPS, LABELS, SPLITS, pixels
from PIL import Image
from small_exports import WRITERS, make_export
from small_sources import COUNTS, MAKERS, MASK_MAKERS


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_described(name, petriscope, tmp_path):
    form = FORMATS[name]
    for library in form.needs:
        pytest.importorskip(library)
    options = {**form.options, **({} if form.group is None else {"group": form.group})}
    words = [word for key, value in options.items() for word in ("--set", f"data.{key}={json.dumps(value)}")]
    status, out, err = petriscope("data", form.write(tmp_path), "--json", "--out", "sheet.png", *words)
    assert status == 0, err
    found = json.loads(out)
    images = pixels()
    assert (found["task"], found["classes"], found["counted"]) == ("classification", list(form.classes), "images")
    assert (found["channels"], found["bits"], found["size"], found["drawn"]) == (3, 8, [8, 9], [])
    assert found["values"]["low"] == images.min((0, 1, 2)).tolist()
    assert found["values"]["high"] == images.max((0, 1, 2)).tolist()
    assert found["values"]["mean"] == pytest.approx(images.mean((0, 1, 2)), abs=0.001)
    for split in ("train", "val", "test"):
        chosen = [number for number in range(12) if SPLITS[number] == split]
        labels = [LABELS[number] for number in chosen]
        groups = len({GROUPS[number] for number in chosen}) if form.grouped else None
        part = found["splits"][split]
        assert (part["n"], part["groups"]) == (len(chosen), groups)
        assert part["per_class"] == {name: labels.count(name) for name in form.classes}
    with Image.open("sheet.png") as sheet:
        assert found["sheet"] == "sheet.png" and sheet.size == (3 * 226 + 10, 2 * (192 + 46) + 10)


@pytest.mark.parametrize("kind", MAKERS)
def test_every_kind_of_source_is_described(kind, petriscope, tmp_path):
    status, out, err = petriscope("data", MAKERS[kind](tmp_path / "set"), "--json", "--out", "sheet.png")
    assert status == 0, err
    found = json.loads(out)
    assert found["task"] == ("segmentation" if kind in MASK_MAKERS else "classification")
    if kind not in ("mars", "cifar", "pile", "mask pile"):
        assert {split: part["n"] for split, part in found["splits"].items()} == COUNTS
    for part in found["splits"].values():
        if kind in MASK_MAKERS:
            height, width = found["size"]
            assert sum(part["per_class"].values()) + part["unlabeled"] == part["n"] * height * width
        else:
            assert sum(part["per_class"].values()) == part["n"] and part["unlabeled"] is None


@pytest.mark.parametrize("tool", WRITERS)
def test_exports_are_described(tool, petriscope, tmp_path):
    make_export(tmp_path / "set", tool)
    status, out, err = petriscope("data", "set", "--json", "--set", "data.crop={}", "--set", "data.size=16")
    assert status == 0, err
    found = json.loads(out)
    assert found["splits"]["train"]["groups"] == 3 and found["columns"]["image"] == 5


def test_an_address_and_a_pattern_and_a_known_name(petriscope, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    home = MAKERS["folders"](tmp_path / "set")
    fsspec.filesystem("memory").put(str(home), "/described", recursive=True)
    status, out, err = petriscope("data", "memory://described", "--json")
    assert status == 0, err
    assert json.loads(out)["splits"]["train"]["n"] == COUNTS["train"]
    status, out, err = petriscope("data", "digits", "--json", "--out", "sheet.png")
    assert status == 0, err
    assert sum(part["n"] for part in json.loads(out)["splits"].values()) == 1797
    pytest.importorskip("webdataset")
    FORMATS["webdataset"].write(tmp_path)
    status, out, err = petriscope("data", "shards/train-{000000..000002}.tar", "--json")
    assert status == 0, err
    assert json.loads(out)["classes"] == ["cat", "dog"]


def test_what_is_left_out_is_listed_with_reason_count_and_first(petriscope, tmp_path):
    MAKERS["folders"](tmp_path / "set")
    (tmp_path / "set/train/cat/train_00.png").write_bytes(b"no image")
    (tmp_path / "set/train/cat/train_02.png").write_bytes(b"")
    (tmp_path / "set/train/cat/notes.doc").write_bytes(b"x")
    shutil.copy(tmp_path / "set/val/cat/val_00.png", tmp_path / "set/train/loose.png")
    status, out, err = petriscope("data", "set", "--json", "--set", "data.unreadable=skip")
    assert status == 0, err
    found = json.loads(out)
    assert found["splits"]["train"]["n"] == COUNTS["train"] - 2
    why = "images that cannot be read: not an image in a format that can be read, or its header is damaged"
    assert {(each["reason"], each["count"], each["first"]) for each in found["left_out"]} == {
        (why, 2, "train/cat/train_00.png"),
        (".doc files", 1, "train/cat/notes.doc"),
        ("images outside class folders", 1, "train/loose.png"),
    }
    again = petriscope("data", "set", "--json", "--set", "data.unreadable=skip")
    assert json.loads(again[1]) == found  # from the cache
    status, out, err = petriscope("data", "set", "--set", "data.unreadable=skip")
    assert status == 0 and re.search(
        r"(?m)^(left out)? +2 images that cannot be read: .* such as train/cat/train_00.png", out
    )
    assert "1 .doc file (train/cat/notes.doc)" in err


def test_images_of_many_sizes_and_a_sheet_of_masks(petriscope, tmp_path):
    for number, side in enumerate((8, 8, 12, 20)):
        for label in ("cat", "dog"):
            (tmp_path / "set" / label).mkdir(parents=True, exist_ok=True)
            Image.new("L", (side, 2 * side), 60 * number).save(tmp_path / "set" / label / f"{number}.png")
    status, out, _ = petriscope("data", "set", "--json")
    assert status == 0
    assert json.loads(out)["file_sizes"] == {
        "different": 3,
        "smallest": [16, 8],
        "largest": [40, 20],
        "most_common": [16, 8],
    }
    status, out, _ = petriscope("data", "set")
    assert "3 sizes from 16x8 to 40x20, most often 16x8" in out and "drawn: train, val, test" in out
    status, out, _ = petriscope("data", "synthetic-terrain:24", "--out", "masks.png")
    assert status == 0
    with Image.open("masks.png") as sheet:
        shown = np.asarray(sheet.convert("RGB"))[10:74, 10:138]
    assert (shown[:, :64].max(2) == shown[:, :64].min(2)).all()  # the image is gray
    assert (shown[:, 64:].max(2) != shown[:, 64:].min(2)).any()  # its mask has colors


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--out", "x.png"], "--out needs a source"),
        (["digits", "--out", "x.jpg"], "must name a PNG file"),
        (["digits", "--json", "--like", "digits"], "--json describes one source"),
    ],
)
def test_what_does_not_fit_is_refused(args, says, petriscope):
    status, out, err = petriscope("data", *args)
    assert status == 2 and out == "" and says in err


def test_known_sets_as_json(petriscope):
    status, out, _ = petriscope("data", "--json")
    assert status == 0 and "digits" in json.loads(out)["sources"]
