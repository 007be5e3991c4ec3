"""CIFAR's pickles: the layout of the pixels, and pickles that want to do more."""

from __future__ import annotations

import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
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


def test_a_batch_as_python_2_wrote_it(tmp_path: Path) -> None:
    """The instructions of the published files."""
    make_cifar(tmp_path)
    pixels = bytes(range(256)) * 12
    (tmp_path / "test_batch").write_bytes(
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15testing batch 1 of 1\nq\x03U\x06labelsq\x04]q\x05K\x01a"
        b"U\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x09"
        b"(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nq\nU\x02u1K\x00K\x01\x87Rq\x0b(K\x03U\x01|NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x00\x0c\x00\x00" + pixels + b"tb"
        b"U\tfilenamesq\x0c]q\rU\x05a.pngau."
    )
    test = load(tmp_path).split("test")
    assert test.targets.tolist() == [1] and test.images[0, 0, :3, 0].tolist() == [0, 1, 2]


def test_an_array_cannot_claim_more_than_the_file_has(tmp_path: Path) -> None:
    make_cifar(tmp_path)
    whole = (tmp_path / "test_batch").read_bytes()
    claimed = whole.replace(b"K\x04M\x00\x0c\x86", b"M\xff\xffM\x00\x0c\x86")
    assert claimed != whole
    (tmp_path / "test_batch").write_bytes(claimed)
    with pytest.raises(DataError, match="the size of an array is not that of its values"):
        load(tmp_path)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8), st.sampled_from((2, 4)))
def test_damaged_bytes_are_an_error_or_a_batch(changes: list[tuple[int, int]], protocol: int) -> None:
    batch = {b"data": np.zeros((1, 3072), np.uint8), b"labels": [0], "names": (b"a", "b", None, True, -1)}
    content = bytearray(pickle.dumps(batch, protocol=protocol))
    for place, byte in changes:
        content[place % len(content)] = byte
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "test_batch"
        path.write_bytes(content)
        try:
            value = cifar_batches.load_plain(path)
        except DataError:
            return
    assert all(each.nbytes <= len(content) for each in value.values() if isinstance(each, np.ndarray))
