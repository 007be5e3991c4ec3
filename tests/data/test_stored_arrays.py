"""Arrays in HDF5 and Zarr: which of them are meant, and what may be wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats import write_zarr
from small_sources import load, some_images

from petriscope.core.errors import DataError, RequestError

h5py = pytest.importorskip("h5py")
LABELS = np.arange(20) % 2


def store(path: Path, **arrays: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name.replace("__", "/")] = values
    return path


def test_one_pair_is_split(tmp_path: Path) -> None:
    data = load(
        store(tmp_path / "a.h5", images=some_images(20), labels=LABELS, groups=[f"g{n // 2}" for n in range(20)])
    )
    assert set(data.splits) == {"train", "val", "test"} and data.split("train").groups is not None
    assert not data.warnings


def test_arrays_are_found_or_asked_for(tmp_path: Path) -> None:
    images = some_images(20)
    data = load(store(tmp_path / "a.h5", cells=images, kind=LABELS))
    assert data.warnings == (
        f"{tmp_path}/a.h5: the images were read from cells",
        f"{tmp_path}/a.h5: the labels were read from kind",
    )
    path = store(tmp_path / "b.h5", one=images, two=images, kind=LABELS, day=LABELS)
    with pytest.raises(
        RequestError, match=r"b\.h5 has no images; they may be one or two; choose with --set data\.image"
    ):
        load(path)
    with pytest.raises(RequestError, match=r"has no labels; they may be day or kind"):
        load(path, image="one")
    assert load(path, image="one", label="day").fingerprint == load(path, image="two", label="kind").fingerprint
    with pytest.raises(RequestError, match=r"data\.image: .* has no array 'on'; did you mean one"):
        load(path, image="on")


def test_where_the_channels_are(tmp_path: Path) -> None:
    images = some_images(20)
    last = load(store(tmp_path / "a.h5", images=images, labels=LABELS))
    first = load(store(tmp_path / "b.h5", images=np.moveaxis(images, 3, 1), labels=LABELS))
    assert first.fingerprint == last.fingerprint
    assert load(tmp_path / "b.h5", memory="mapped").fingerprint == last.fingerprint
    narrow = store(tmp_path / "c.h5", images=some_images(20)[:, :3, :, :3], labels=LABELS)
    with pytest.raises(RequestError, match=r"images has shape \[20, 3, 9, 3\]; say which axis has the channels"):
        load(narrow)
    assert load(narrow, layout="channels-last").shape == (3, 9, 3)
    assert load(narrow, layout="channels-first").shape == (9, 3, 3)


def test_messages_have_the_names_of_the_file(tmp_path: Path) -> None:
    path = store(tmp_path / "a.h5", images=some_images(20), labels=LABELS[:3])
    with pytest.raises(DataError, match=r"a\.h5: images has shape \[20, 8, 9, 3\] and labels \[3\]"):
        load(path)
    path = store(tmp_path / "b.h5", images=some_images(20), labels=LABELS - 1)
    with pytest.raises(DataError, match=r"labels of .*b\.h5: label -1 of image 0"):
        load(path)
    with pytest.raises(DataError, match=r"c\.h5 has no arrays"):
        load(store(tmp_path / "c.h5"))


def test_arrays_in_other_files(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(4320))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("images", (20, 8, 9, 3), "u1", external=[(str(tmp_path / "raw"), 0, 4320)])
        file["labels"] = LABELS
    with pytest.raises(DataError, match=r"a\.h5: images is stored in other files"):
        load(tmp_path / "a.h5")


def test_links_are_not_followed(tmp_path: Path) -> None:
    store(tmp_path / "b.h5", images=some_images(20))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = h5py.ExternalLink("b.h5", "images")
        file["labels"] = LABELS
    with pytest.raises(RequestError, match=r"a\.h5 has no images"):
        load(tmp_path / "a.h5")


def test_pickle_in_zarr(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    source = Path(write_zarr(tmp_path, 2))
    file = source / "train_images/.zarray"
    about = json.loads(file.read_text())
    file.write_text(json.dumps({**about, "filters": [{"id": "pickle", "protocol": 5}]}))
    with pytest.raises(DataError, match=r"\.zarray names pickle"):
        load(source)


def test_a_damaged_chunk_of_zarr(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    source = Path(write_zarr(tmp_path))
    chunk = next(each for each in sorted((source / "train_images").rglob("*")) if each.is_file() and each.suffix == "")
    chunk.write_bytes(chunk.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"cells\.zarr.*train_images"):
        load(source, classes=("cat", "dog"))


@pytest.mark.parametrize(("library", "name", "extra"), [("h5py", "a.h5", "hdf5"), ("zarr", "a.zarr", "zarr")])
def test_a_missing_library(
    library: str, name: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    if extra == "zarr":
        (tmp_path / name).mkdir()
        (tmp_path / name / "zarr.json").write_text("{}")
    else:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(RequestError, match=rf"pip install 'petriscope\[{extra}\]'"):
        load(tmp_path / name)
