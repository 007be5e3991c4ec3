"""CIFAR's pickles: the layout of the pixels, and pickles that want to do more."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_sources import load, make_cifar

from petriscope.core.errors import DataError
from petriscope.data.sources import cifar_batches


class Trap:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


def test_planes_become_channels(tmp_path: Path) -> None:
    make_cifar(tmp_path)
    data = np.zeros((4, 3072), np.uint8)
    data[:, :1024] = 200  # red
    data[:, 1024 + 33] = 7  # green of row 1, column 1
    (tmp_path / "test_batch").write_bytes(pickle.dumps({"data": data, "labels": [0, 1, 1, 0]}, protocol=4))
    test = load(tmp_path).split("test")
    assert test.images[0, 1, 1].tolist() == [200, 7, 0] and test.targets.tolist() == [0, 1, 1, 0]
    assert test.classes == ("cat", "dog")


def test_the_folder_above_and_test_alone(tmp_path: Path) -> None:
    folder = make_cifar(tmp_path / "cifar-10-batches-py")
    assert len(load(tmp_path, val_fraction=0).split("train")) == 20
    (folder / "data_batch_3").unlink()
    with pytest.raises(DataError, match="lacks data_batch_3"):
        load(folder)
    for number in (1, 2, 4, 5):
        (folder / f"data_batch_{number}").unlink()
    assert list(load(folder).splits) == ["test"]


@pytest.mark.parametrize(
    "call", [(os.system, "touch sprung"), (eval, "open('sprung', 'w')"), (np.load, "x"), (Path, "x")]
)
def test_a_pickle_cannot_run_anything(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_cifar(tmp_path)
    for protocol in (0, 2, 4):
        (tmp_path / "test_batch").write_bytes(pickle.dumps({"data": Trap(*call)}, protocol=protocol))
        with pytest.raises(DataError, match="not loaded"):
            load(tmp_path)
    assert not Path("sprung").exists()


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ([1, 2], "holds a list"),
        ({}, "not uint8"),
        ({"data": np.zeros((4, 3072), np.float32), "labels": [0] * 4}, "not uint8"),
        ({"data": np.zeros((4, 3072), np.uint8), "labels": [0] * 3}, "each of its 4 images"),
        ({"data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 2, -1]}, "label -1 of image 3"),
        ({"data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 2, 1]}, "label 2 of test image 2 is out of range"),
        (None, "holds a NoneType"),
    ],
)
def test_wrong_batches(batch: Any, says: str, tmp_path: Path) -> None:
    make_cifar(tmp_path)
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch))
    with pytest.raises(DataError, match=says):
        load(tmp_path)


def test_damaged_and_large_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cifar(tmp_path)
    whole = (tmp_path / "test_batch").read_bytes()
    for content in (whole[:100], b"", b"hello"):
        (tmp_path / "test_batch").write_bytes(content)
        with pytest.raises(DataError, match="damaged"):
            load(tmp_path)
    (tmp_path / "test_batch").write_bytes(whole)
    monkeypatch.setattr(cifar_batches, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match="larger than"):
        load(tmp_path)
