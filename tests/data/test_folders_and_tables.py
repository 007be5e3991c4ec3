"""Folders of class folders, and tables that list images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_sources import load, make_folders, make_table, make_unsplit, save_image, some_images, write_table

from petriscope.core.errors import DataError, RequestError


def test_ids_are_paths_below_the_source(tmp_path: Path) -> None:
    make_folders(tmp_path / "data")
    save_image(tmp_path / "data/train/cat/deeper/z.png", some_images(1, seed=9)[0])
    ids = load(tmp_path / "data").split("train").ids.tolist()
    assert "train/cat/train_00.png" in ids and "train/cat/deeper/z.png" in ids


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_other_names_of_val(name: str, tmp_path: Path) -> None:
    make_folders(tmp_path / "data")
    (tmp_path / "data/val").rename(tmp_path / "data" / name)
    assert len(load(tmp_path / "data").split("val")) == 4
    make_folders(tmp_path / "data")
    with pytest.raises(DataError, match="has both"):
        load(tmp_path / "data")


def test_odd_files_are_counted(tmp_path: Path) -> None:
    make_folders(tmp_path / "data")
    clean = load(tmp_path / "data")
    for name in ("train/notes.txt", "train/cat/Thumbs.db", ".hidden", "train/.DS_Store", "train/cat/.x.png"):
        (tmp_path / "data" / name).write_bytes(b"x")
    (tmp_path / "data/__MACOSX/cat").mkdir(parents=True)
    (tmp_path / "data/train/loop").symlink_to(tmp_path / "data", target_is_directory=True)
    (tmp_path / "data/train/cat/loop").symlink_to(tmp_path / "data", target_is_directory=True)
    save_image(tmp_path / "data/train/loose.png", some_images(1)[0])
    data = load(tmp_path / "data")
    assert data.fingerprint == clean.fingerprint and not clean.warnings
    (warning,) = data.warnings
    assert warning.endswith(
        "data: left out 4 hidden or system files (.hidden), 2 links to folders of the source itself (train/cat/loop), "
        "1 hidden or system folder (__MACOSX), 1 image outside class folders (train/loose.png), 1 .txt file "
        "(train/notes.txt)"
    )


def test_an_empty_class_folder(tmp_path: Path) -> None:
    make_unsplit(tmp_path / "data")
    (tmp_path / "data/emu").mkdir()
    with pytest.raises(DataError, match=r"class folder .*emu has no images"):
        load(tmp_path / "data")


def test_a_class_folder_that_is_empty_in_one_split(tmp_path: Path) -> None:
    make_folders(tmp_path / "data")
    for file in (tmp_path / "data/val/cat").iterdir():
        file.unlink()
    data = load(tmp_path / "data")
    assert set(data.split("val").targets) == {data.classes.index("dog")}
    assert any("val/cat has no images; other splits have some of cat" in each for each in data.warnings)
    (tmp_path / "data/val/cat/1.nii").write_bytes(b"x")
    with pytest.raises(DataError, match=r"class folder .*cat has no images but 1 \.nii file"):
        load(tmp_path / "data")


def test_a_class_folder_whose_name_means_that_there_is_no_label(tmp_path: Path) -> None:
    for name in ("cat", "dog", "Unlabeled"):
        for number, pixels in enumerate(some_images(4)):
            save_image(tmp_path / "s" / name / f"{number}.png", pixels)
    assert [text for text in load(tmp_path / "s").warnings if "4 images in Unlabeled were read as of a class" in text]
    assert not [
        text for text in load(tmp_path / "s", classes=("cat", "dog", "Unlabeled")).warnings if "read as of" in text
    ]


def test_no_class_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no images"):
        load(tmp_path)
    save_image(tmp_path / "x.png", some_images(1)[0])
    with pytest.raises(DataError, match=r"1 images are in .* itself; make a folder for each class"):
        load(tmp_path)


def test_one_class_folder(tmp_path: Path) -> None:
    save_image(tmp_path / "data/cat/x.png", some_images(1)[0])
    with pytest.raises(DataError, match="only one class, cat"):
        load(tmp_path / "data")


def test_class_folders_beside_splits(tmp_path: Path) -> None:
    make_folders(tmp_path / "data")
    (tmp_path / "data/docs").mkdir()
    (tmp_path / "data/docs/readme.txt").write_text("x")
    assert len(load(tmp_path / "data").split("train")) == 12
    save_image(tmp_path / "data/more/x.png", some_images(1)[0])
    with pytest.raises(DataError, match="beside them, more with images"):
        load(tmp_path / "data")


def test_numbered_classes_are_ordered_by_value(tmp_path: Path) -> None:
    for number, pixels in enumerate(some_images(22)):
        save_image(tmp_path / "data" / str(number // 2) / f"{number}.png", pixels)
    assert load(tmp_path / "data").classes == tuple(str(number) for number in range(11))


@pytest.mark.parametrize("outer", [("fold1", "fold2"), ("learn", "eval"), ("site A", "site B", "site C")])
def test_folders_that_all_have_the_same_folders_are_no_classes_in_silence(
    outer: tuple[str, ...], tmp_path: Path
) -> None:
    for number, pixels in enumerate(some_images(12)):
        save_image(tmp_path / "s" / outer[number % len(outer)] / ("cat", "dog")[number // 6] / f"{number}.png", pixels)
    dataset = load(tmp_path / "s")
    assert dataset.classes == tuple(sorted(outer))
    assert any("each of them has the folders cat, dog; if those are the classes" in said for said in dataset.warnings)
    save_image(tmp_path / "s" / outer[0] / "one.png", some_images(1)[0])
    assert not any("if those are the classes" in said for said in load(tmp_path / "s").warnings)


def test_a_table_without_split_is_one_pile(tmp_path: Path) -> None:
    rows = []
    for number, pixels in enumerate(some_images(20)):
        save_image(tmp_path / f"p{number}.png", pixels)
        rows.append({"path": f"p{number}.png", "label": "NA" if number % 2 else "b"})
    data = load(write_table(tmp_path / "t.csv", rows))
    assert len(data.splits) == 3 and data.classes == ("NA", "b")
    rows = [{"path": str(tmp_path / row["path"]), "label": int(row["label"] == "b")} for row in rows]
    for kind in ("csv", "jsonl", "parquet"):
        assert load(write_table(tmp_path / f"n.{kind}", rows), classes=("x", "y")).classes == ("x", "y")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"path": "../x.png", "label": "cat", "split": "train"}, "is outside the folder"),
        ({"path": "train/cat/train_00.png", "label": "cat", "split": "train"}, "occurs twice"),
        ({"path": "x.png", "label": "", "split": "train"}, "label of row 20 .* is empty"),
        ({"path": "x.png", "label": "cat", "split": "tset"}, "unknown split 'tset' .*did you mean test"),
        ({"path": "x.png", "label": "cat", "split": "train"}, r"1 image cannot be read: x\.png \(no such file\)"),
        ({"path": "x.png", "label": "emu", "split": "test"}, "no such file"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_wrong_rows(row: dict[str, Any], says: str, kind: str, tmp_path: Path) -> None:
    import pandas as pd

    path = make_table(tmp_path, kind=kind)
    if kind == "jsonl":
        table = pd.read_json(path, lines=True)
    else:
        table = pd.read_csv(path) if kind == "csv" else pd.read_parquet(path)
    rows: list[dict[str, Any]] = [*table.to_dict("records"), row]  # type: ignore[list-item]
    write_table(path, rows)
    with pytest.raises(DataError, match=says):
        load(path)


def test_wrong_tables(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'label', and a table needs path and label; did you mean lable"):
        load(write_table(tmp_path / "t.csv", [{"path": "x", "lable": 1}]))
    with pytest.raises(DataError, match="Masks are read from folders"):
        load(write_table(tmp_path / "t.csv", [{"path": "x", "Mask File": "y"}]))
    with pytest.raises(DataError, match="no rows"):
        load(write_table(tmp_path / "t.parquet", [{"path": "x", "label": 1}][:0]))
    with pytest.raises(DataError, match="label -5 of image 0"):
        load(write_table(tmp_path / "t.csv", [{"path": "x", "label": -5}]))
    for name in ("t.csv", "t.jsonl", "t.parquet"):
        (tmp_path / name).write_bytes(b"\xff\xfe\0" * 9)
        with pytest.raises(RequestError, match=r"cannot be read|not text in UTF-8"):
            load(tmp_path / name)
