"""npz files that are wrong, and the values that they hold."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_sources import load, make_mask_npz, make_npz, some_images

from petriscope.core.errors import DataError, PetriscopeError, RequestError
from petriscope.data import cache
from petriscope.data.sources import npz


class Trap:
    """Unpickling this would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def wide(values: int, top: int = 65535) -> np.ndarray:
    return np.linspace(0, top, values * 72).reshape(values, 8, 9).astype(np.uint16)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train_labels": None}, "no train_labels"),
        ({"train_images": None}, "no train_images"),
        ({"tran_images": np.zeros(1)}, "did you mean train_images"),
        ({"train_labels": np.zeros((12, 3), int)}, "3 labels per image"),
        ({"train_labels": np.full(12, np.nan)}, "label of image 0 is nan"),
        ({"train_labels": np.linspace(0, 1, 12)}, "not a whole number"),
        ({"train_labels": np.arange(12) - 3}, "label -3 of image 0 is out of range"),
        ({"train_labels": np.arange(12) * 5000}, "label 10000 of image 2 is out of range"),
        ({"train_labels": np.array(["a"] * 12)}, "whole numbers"),
        ({"train_labels": np.zeros(11, int)}, "first dimensions must agree"),
        ({"classes": np.array(["cat"])}, "label 1 of train image 1 is out of range"),
        ({"classes": np.array(["cat", "cat"])}, "a name twice"),
        ({"classes": np.array([0, 1])}, "strings"),
        ({"train_images": some_images(12)[..., :2]}, "1 .gray. or 3 .RGB. channels"),
        ({"train_images": some_images(12).transpose(0, 3, 1, 2)}, "channels come last"),
        ({"train_images": some_images(12)[:, 0, 0]}, r"\[N, H, W\]"),
        ({"train_images": some_images(12) > 100}, "type bool"),
        ({"train_images": some_images(12).astype(np.int64)}, "type int64"),
        ({"train_images": some_images(12) / 255 * 2 - 1}, r"from -1 to 1; scale"),
        ({"train_images": np.full((12, 8, 9), np.inf)}, "train image 0 has NaN"),
    ],
)
def test_wrong_arrays(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says):
        load(make_npz(tmp_path, **changes))


def test_no_images(tmp_path: Path) -> None:
    empty = {f"{split}_images": np.zeros((0, 8, 9, 3), np.uint8) for split in ("train", "val", "test")}
    labels = {f"{split}_labels": np.zeros(0, int) for split in ("train", "val", "test")}
    with pytest.raises(DataError, match="no images"):
        load(make_npz(tmp_path, **empty, **labels))
    some = make_npz(tmp_path, val_images=empty["val_images"], val_labels=labels["val_labels"])
    assert any("val_images is empty" in text for text in load(some).warnings)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    trap = np.array([Trap(tmp_path / "sprung")] * 12, dtype=object)
    for name in ("train_images", "train_labels", "classes"):
        with pytest.raises(DataError, match="unpickling"):
            load(make_npz(tmp_path, **{name: trap}))
    assert not (tmp_path / "sprung").exists()


def test_damaged_files(tmp_path: Path) -> None:
    whole = make_npz(tmp_path).read_bytes()
    path = tmp_path / "bad.npz"
    for content in (b"", b"hello", whole[: len(whole) // 2], whole[:-10]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="not a complete npz"):
            load(path)
    middle = len(whole) // 4
    path.write_bytes(
        whole[:middle] + bytes(value ^ 255 for value in whole[middle : middle + 50]) + whole[middle + 50 :]
    )
    with pytest.raises(DataError):
        load(path)


def replace_member(path: Path, name: str, content: bytes) -> Path:
    with zipfile.ZipFile(path) as old:
        members = {info.filename: old.read(info) for info in old.infolist()}
    members[name] = content
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for member, data in members.items():
            new.writestr(member, data)
    return path


def test_a_header_that_lies(tmp_path: Path) -> None:
    header = io.BytesIO()
    fields = {"descr": "|u1", "fortran_order": False, "shape": (12, 10**6, 10**6, 3)}
    np.lib.format.write_array_header_1_0(header, fields)
    path = replace_member(make_npz(tmp_path), "train_images.npy", header.getvalue() + b"\0" * 1000)
    with pytest.raises(DataError, match="claims 36,000,000,000,000 bytes"):
        load(path)
    with pytest.raises(DataError, match="train_images is damaged"):
        load(replace_member(path, "train_images.npy", b"nonsense"))


def test_more_than_the_memory_or_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_npz(tmp_path)
    monkeypatch.setattr(cache, "free_memory", lambda: 4000)
    monkeypatch.setattr(npz, "free_memory", lambda: 4000)
    with pytest.raises(DataError, match=r"data\.memory=mapped"):
        load(path, memory="resident")
    assert load(path, memory="auto").split("train").mapped
    for file in cache.cache_dir().iterdir():
        file.unlink()
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10}))
    with pytest.raises(PetriscopeError, match="PETRISCOPE_CACHE"):
        load(path, memory="mapped")


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    values = wide(12)
    data = load(make_npz(tmp_path, train_images=values))
    expected = np.rint(values / 65535 * 255)
    assert np.abs(data.split("train").images[..., 0].astype(float) - expected).max() <= 1
    assert data.split("train").images.max() == 255


def test_dim_images_of_twelve_bits(tmp_path: Path) -> None:
    names = {f"{split}_images": wide(count, 4095) for split, count in (("train", 12), ("val", 4), ("test", 4))}
    path = make_npz(tmp_path, **names)
    assert any("data.bits=12" in text for text in load(path).warnings)
    data = load(path, bits=12)
    assert data.split("train").images.max() == 255 and not any("bits" in text for text in data.warnings)
    with pytest.raises(DataError, match=r"4095, more than data\.bits=10"):
        load(path, bits=10)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_are_scaled(kind: type, tmp_path: Path) -> None:
    whole = make_npz(tmp_path / "a")
    with np.load(whole) as arrays:
        parts = {name: (arrays[name] / 255).astype(kind) for name in arrays if name.endswith("images")}
    assert load(make_npz(tmp_path / "b", **parts)).fingerprint == load(whole).fingerprint


@pytest.mark.parametrize("kind", [bool, np.int8, np.uint64, np.float32])
def test_labels_of_other_types(kind: type, tmp_path: Path) -> None:
    labels = (np.arange(12) % 2).astype(kind)
    assert load(make_npz(tmp_path / "b", train_labels=labels)).split("train").targets.tolist() == [0, 1] * 6


@pytest.mark.parametrize("memory", ["resident", "mapped"])
@pytest.mark.parametrize("kind", ["u1", "<u2", ">u2", "<f4", ">f8"])
@pytest.mark.parametrize("make", [make_npz, make_mask_npz])
def test_the_order_of_bytes_in_the_file_changes_nothing(make: Any, kind: str, memory: str, tmp_path: Path) -> None:
    whole = make(tmp_path / "a")
    changes: dict[str, Any] = {}
    with np.load(whole) as arrays:
        for name in arrays.files:
            value = arrays[name]
            if name.endswith("images"):
                value = (
                    value / 255 if "f" in kind else value * np.dtype(kind).type(257 if "u2" in kind else 1)
                ).astype(kind)
            changes[name] = np.asfortranarray(value)
    data, plain = load(make(tmp_path / "b", **changes), memory=memory), load(whole)
    assert data.fingerprint == plain.fingerprint
    for split, part in data.splits.items():  # read by rows too, as training does
        assert np.array_equal(part.take(np.array([2, 0])), plain.split(split).images[[2, 0]])
        assert np.array_equal(part.targets, plain.split(split).targets)


def test_class_names(tmp_path: Path) -> None:
    assert load(make_npz(tmp_path, classes=np.array(["cat", "dog"]))).classes == ("cat", "dog")
    labels = {f"{split}_labels": np.arange(n) % 8 for split, n in (("train", 12), ("val", 4), ("test", 4))}
    path = make_npz(tmp_path, **labels)
    assert load(path).classes[0] == "0"
    assert load(path.rename(tmp_path / "bloodmnist_28.npz")).classes[::7] == ("basophil", "platelet")
    with pytest.raises(RequestError, match="need 2"):
        load(make_npz(tmp_path), classes=("a", "b", "c"))
