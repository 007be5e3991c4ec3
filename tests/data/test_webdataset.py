"""Shards of samples, and what may be wrong with them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from formats import png, write_one_shard, write_shards
from small_sources import load, some_images

from petriscope.core.errors import DataError, RequestError
from petriscope.core.recipe import DataSection
from petriscope.data.sources import list_files


def shard(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


IMAGES = [png(image) for image in some_images(12)]


def samples(first: int = 0, count: int = 12, **side: str) -> dict[str, bytes]:
    """Files of samples; ``{n}`` and ``{label}`` in a text are replaced."""
    out: dict[str, bytes] = {}
    for n in range(first, first + count):
        out[f"{n:03d}.png"] = IMAGES[n]
        for suffix, text in side.items():
            label = "ab"[n % 2]
            value = text.replace("<n>", str(n)).replace("<label>", label).replace("<number>", str(n % 2))
            out[f"{n:03d}.{suffix}"] = value.encode()
    return out


def test_a_pattern_of_shards(tmp_path: Path) -> None:
    for number in range(3):
        shard(tmp_path / f"cells-{number:03d}.tar", samples(4 * number, 4, cls="<number>"))
    source = str(tmp_path / "cells-{000..002}.tar")
    data = load(source)
    assert sum(len(part) for part in data.splits.values()) == 12 and set(data.splits) == {"train", "val", "test"}
    assert load(source).fingerprint == data.fingerprint
    with pytest.raises(RequestError, match=r"1 of 4 shards are missing, the first: .*cells-003\.tar"):
        load(str(tmp_path / "cells-{000..003}.tar"))
    for wrong in ("cells-{5..3}.tar", "cells-{0..99999999}.tar", "a-{0..9999}-{0..9999}.tar"):
        with pytest.raises(RequestError, match="shards"):
            load(str(tmp_path / wrong))


def test_folders_are_splits(tmp_path: Path) -> None:
    shard(tmp_path / "set/train/0.tar", samples(0, 8, cls="<number>"))
    shard(tmp_path / "set/valid/0.tar", samples(8, 4, cls="<number>"))
    data = load(tmp_path / "set")
    assert {name: len(part) for name, part in data.splits.items()} == {"train": 8, "val": 4}


def test_one_shard(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    source = write_one_shard(tmp_path)
    data = load(source)
    assert set(data.splits) == {"train", "val", "test"} and data.classes == ("0", "1")
    assert load(source, classes=("cat", "dog")).classes == ("cat", "dog")
    assert list_files(source, DataSection()) == []


def test_equal_names_in_shards(tmp_path: Path) -> None:
    shard(tmp_path / "set/train-0.tar", samples(0, 8, cls="<number>"))
    shard(
        tmp_path / "set/val-0.tar",
        {f"00{n - 8}.{e}": d for n in range(8, 12) for e, d in (("png", IMAGES[n]), ("cls", b"0"))},
    )
    data = load(tmp_path / "set")
    assert data.split("val").ids.tolist() == [f"val-0/00{n}.png" for n in range(4)]


def test_columns_groups_and_numbers_of_classes(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    source = write_shards(tmp_path)
    train = load(source).split("train")
    assert train.columns["day"].tolist() == [str(n) for n in range(6)] and set(train.columns) == {
        "slide",
        "day",
        "label",
    }
    assert load(source, group=r"\d(\d)\.").split("train").groups.tolist() == [str(n) for n in range(6)]


def test_labels_are_found_or_asked_for(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", samples(json='{"class": "<label>", "other": "x<number>"}'))
    data = load(path)
    assert data.classes == ("a", "b") and "labels were read from the field class of .json" in data.warnings[0]
    assert load(path, label="other").classes == ("x0", "x1")
    path = shard(tmp_path / "b.tar", samples(json='{"class": "<label>", "category": "x<number>"}'))
    with pytest.raises(RequestError, match=r"labels may be class or category; choose with --set data\.label"):
        load(path)
    path = shard(tmp_path / "c.tar", samples(json='{"size": 3}'))
    with pytest.raises(RequestError, match=r"no labels were found beside the images, only \.json, size"):
        load(path)
    with pytest.raises(RequestError, match=r"data\.label: no sample of .* has 'sizes'; did you mean size"):
        load(path, label="sizes")
    path = shard(tmp_path / "d.tar", samples(cls="<number>", txt="name <label>"))
    assert load(path, label="txt").classes == ("name a", "name b")
    assert load(path, label=".cls").classes == ("0", "1")


def test_samples_without_a_label_or_an_image(tmp_path: Path) -> None:
    files = samples(cls="<number>")
    del files["003.cls"]
    with pytest.raises(DataError, match=r"a\.tar: the sample 003 has no label in cls"):
        load(shard(tmp_path / "a.tar", files))
    files = samples(cls="<number>")
    del files["003.png"]
    data = load(shard(tmp_path / "b.tar", files))
    assert data.warnings[0].endswith("left out 1 sample without an image (b.tar/003)")
    with pytest.raises(DataError, match=r"the sample 000 has the label \['a'\] in label"):
        load(shard(tmp_path / "c.tar", samples(json='{"label": ["a"]}')))
    with pytest.raises(DataError, match=r"d\.tar: 000\.json is no JSON"):
        load(shard(tmp_path / "d.tar", samples(json='{"label": ')))
    with pytest.raises(DataError, match=r"e\.tar: 000\.cls is not text in UTF-8"):
        load(shard(tmp_path / "e.tar", {**samples(cls="<number>"), "000.cls": b"\xff\xfe\xfd"}))
    with pytest.raises(DataError, match=r"f\.tar: 000\.cls has 70,000 bytes"):
        load(shard(tmp_path / "f.tar", {**samples(cls="<number>"), "000.cls": b"1" * 70000}))


def test_several_images_in_a_sample(tmp_path: Path) -> None:
    files = samples(cls="<number>")
    files |= {f"{n:03d}.mask.png": IMAGES[0] for n in range(12)}
    path = shard(tmp_path / "a.tar", files)
    with pytest.raises(RequestError, match=r"the sample 000 has the images png, mask\.png; choose one"):
        load(path)
    assert load(path, image="png").split("train").ids[0] == "000.png"


def test_an_unreadable_image(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", {**samples(cls="<number>"), "005.png": b"no image"})
    with pytest.raises(DataError, match=r"a\.tar: 1 image cannot be read: 005\.png"):
        load(path)
    assert sum(len(part) for part in load(path, unreadable="skip").splits.values()) == 11


def test_some_names_say_splits(tmp_path: Path) -> None:
    shard(tmp_path / "set/train-0.tar", samples(0, 8, cls="<number>"))
    shard(tmp_path / "set/more.tar", samples(8, 4, cls="<number>"))
    with pytest.raises(DataError, match=r"the name of train-0\.tar says its split, and that of more\.tar does not"):
        load(tmp_path / "set")


def test_class_folders_with_texts_are_no_samples(tmp_path: Path) -> None:
    files = {f"{'ab'[n % 2]}/{name}": data for n in range(12) for name, data in samples(n, 1, txt="x").items()}
    assert load(shard(tmp_path / "a.tar", files)).classes == ("a", "b")


def test_no_samples(tmp_path: Path) -> None:
    shard(tmp_path / "set/a.tar", {"readme": b"x"})
    with pytest.raises(DataError, match="has no samples"):
        load(tmp_path / "set")
    shard(tmp_path / "set/a.tar", {"x.json": json.dumps({"label": 1}).encode()})
    with pytest.raises(DataError, match="has no sample with an image"):
        load(tmp_path / "set")


@pytest.mark.parametrize("stream", [None, {"window": 64}])
def test_what_fields_say_of_labels_and_splits_is_not_passed_over(stream: dict[str, int] | None, tmp_path: Path) -> None:
    options = {} if stream is None else {"stream": stream, "val_fraction": 0.25}
    path = shard(tmp_path / "a.tar", samples(json='{"label": <number>.0, "split": "train", "day": "mon"}'))
    data = load(path, **options)
    assert data.classes == ("0", "1") and not any("may say the splits" in text for text in data.warnings)
    words = [f'{{"label": {["NaN", 1][n % 2]}, "subset": "{["train", "val"][n % 2]}"}}' for n in range(12)]
    path = shard(
        tmp_path / "b.tar",
        samples() | {f"{n:03d}.json": text.replace("NaN", '"nan"').encode() for n, text in enumerate(words)},
    )
    data = load(path, **options)
    assert any("6 labels are nan, first in row 0" in text for text in data.warnings)
    assert any("the column subset may say the splits, and is not read as such" in text for text in data.warnings)
