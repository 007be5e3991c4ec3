"""Parquet files with the bytes of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from formats import png, write_hub, write_pandas_parquet
from small_sources import load, some_images

from petriscope.core.errors import DataError, RequestError
from petriscope.core.recipe import DataSection
from petriscope.data.sources import list_files, parquet_images

IMAGES = [png(image) for image in some_images(12)]


def table(path: Path, **columns: Any) -> Path:
    columns = {"image": IMAGES, "label": ["ab"[n % 2] for n in range(12)], **columns}
    pd.DataFrame({name: values for name, values in columns.items() if values is not None}).to_parquet(path)
    return path


def test_what_the_hub_notes(tmp_path: Path) -> None:
    data = load(write_hub(tmp_path))
    assert data.classes == ("cat", "dog") and data.warnings == (
        f"{tmp_path}/hub: left out 1 .md file (README.md)",
        f"{tmp_path}/hub: the column slide may say which images belong together, such as those of one patient, and was not read "
        "so; --set data.group=slide keeps them in one split",
    )
    assert data.split("train").columns["slide"].tolist() == ["slide0"] * 3 + ["slide1"] * 3
    assert load(tmp_path / "hub/data/train-00000-of-00001.parquet").classes == ("cat", "dog")
    assert list_files(str(tmp_path / "hub"), DataSection()) == []


def test_ids_where_there_are_no_names(tmp_path: Path) -> None:
    data = load(write_pandas_parquet(tmp_path))
    assert data.split("val").ids.tolist() == ["val/0", "val/1", "val/2"]


def test_columns_are_found_or_asked_for(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", image=None, image_data=IMAGES, label=None, category=["x", "y"] * 6)
    data = load(path)
    assert data.classes == ("x", "y")
    assert data.warnings[:2] == (
        "images were read from the column image_data",
        "labels were read from the column category",
    )
    path = table(tmp_path / "b.parquet", image_2=IMAGES)
    with pytest.raises(RequestError, match=r"images may be image or image_2; choose with --set data\.image"):
        load(path)
    assert load(path, image="image_2").classes == ("a", "b")
    with pytest.raises(RequestError, match="has no column 'imag'"):
        load(path, image="imag")
    with pytest.raises(DataError, match=r"the column label has no bytes of images, but is of type (large_)?string"):
        load(path, image="label")
    with pytest.raises(DataError, match="the column label has no bytes"):
        load(path, image="label", stream={"window": 64})
    path = table(tmp_path / "c.parquet", label=None, coarse=["x", "y"] * 6)
    with pytest.raises(RequestError, match="no labels were found among coarse"):
        load(path)
    assert load(path, label="coarse").classes == ("x", "y")
    with pytest.raises(RequestError, match="no column 'x'"):
        load(path, label="x")


@pytest.mark.parametrize("missing", [None, b""])
def test_a_row_without_an_image(missing: bytes | None, tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", image=[*IMAGES[:4], missing, *IMAGES[5:]])
    with pytest.raises(DataError, match=r"a\.parquet: row 4 \(counted from 0\) has no bytes"):
        load(path)


def test_a_row_without_a_label(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", label=["a", "b", None] * 4)
    with pytest.raises(DataError, match=r"a\.parquet: the cell label of row 2 \(counted from 0\) is empty"):
        load(path)


def test_an_unreadable_image(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", image=[*IMAGES[:4], b"no image", *IMAGES[5:]])
    with pytest.raises(DataError, match=r"a\.parquet: 1 image cannot be read: all/4"):
        load(path)
    assert sum(len(part) for part in load(path, unreadable="skip").splits.values()) == 11


def test_an_unknown_split(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", split=["train", "tset"] * 6)
    with pytest.raises(DataError, match=r"a\.parquet: unknown split 'tset' in row 1"):
        load(path)


def test_a_column_that_may_say_the_splits_is_said(tmp_path: Path) -> None:
    data = load(table(tmp_path / "a.parquet", set=["train"] * 8 + ["test"] * 4, day=["mon"] * 12))
    said = [text for text in data.warnings if "may say the splits" in text]
    assert len(said) == 1 and "the column set may say the splits, and is not read as such" in said[0]
    data = load(table(tmp_path / "a.parquet", set=["train"] * 8 + ["test"] * 4, split=["train"] * 6 + ["test"] * 6))
    assert len(data.split("test")) == 6 and not any("may say the splits" in text for text in data.warnings)


def test_files_that_differ_in_class_names(tmp_path: Path) -> None:
    write_hub(tmp_path)
    table(tmp_path / "hub/data/test-00000-of-00001.parquet", label=[0, 1] * 6)
    with pytest.raises(DataError, match="differ in the class names of label"):
        load(tmp_path / "hub")


def test_no_images(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    table(tmp_path / "set/a.parquet", image=None, number=[1] * 12)
    with pytest.raises(DataError, match=r"a\.parquet has no column of images \(bytes\); its columns are label, number"):
        load(tmp_path / "set")


def test_few_rows_are_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_images, "ROWS", 2)
    one = load(write_hub(tmp_path, rows=5))
    assert len(one.split("train")) == 6 and one.classes == ("cat", "dog")
