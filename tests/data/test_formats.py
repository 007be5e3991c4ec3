"""What every format promises: the images that its own library wrote, with their names, labels, groups and splits."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from formats import FORMATS, GROUPS, LABELS, SPLITS, Format, pixels
from small_sources import load

from petriscope.core.errors import PetriscopeError, RequestError
from petriscope.data import Dataset
from petriscope.data.imageset import ImageSet


@pytest.fixture(params=FORMATS)
def form(request: pytest.FixtureRequest) -> Format:
    for library in FORMATS[request.param].needs:
        pytest.importorskip(library)
    return FORMATS[request.param]


def numbers(part: ImageSet) -> list[int]:
    """Which of the twelve images each is, by its pixels."""
    known = {image.tobytes(): number for number, image in enumerate(pixels())}
    return [known[image.tobytes()] for image in part.images]


def splits(data: Dataset) -> dict[str, list[int]]:
    return {name: sorted(numbers(part)) for name, part in data.splits.items()}


def test_the_same_images_labels_groups_and_splits(form: Format, tmp_path: Path) -> None:
    source = form.write(tmp_path)
    data = load(source, group=form.group, **form.options)
    assert splits(data) == {
        name: [number for number in range(12) if SPLITS[number] == name] for name in ("train", "val", "test")
    }
    assert data.classes == form.classes
    for part in data.splits.values():
        for number, label, name in zip(numbers(part), part.targets, part.ids, strict=True):
            assert ("cat", "dog")[label] == LABELS[number]
            assert not form.ids or name == form.ids[number]
        groups = [GROUPS[number] for number in numbers(part)] if form.grouped else None
        assert (None if part.groups is None else part.groups.tolist()) == groups
    ids = np.concatenate([part.ids for part in data.splits.values()])
    assert len({*ids}) == 12


def test_the_second_start_reads_nothing_again(form: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = form.write(tmp_path)
    one = load(source, **form.options)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr("petriscope.data.decode_many._decode_to_cache", refuse)
    two = load(source, **form.options)
    assert one.fingerprint == two.fingerprint and one.warnings == two.warnings


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def turned(data: bytes) -> bytes:
    """In the middle of an image, or what stands for it."""
    at = len(data) // 2
    return data[:at] + bytes(255 - byte for byte in data[at : at + 200]) + data[at + 200 :]


def foreign(data: bytes) -> bytes:
    return b"Dear diary, " * 99


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_named_pipe_is_not_waited_for(form: Format, tmp_path: Path) -> None:
    source = form.write(tmp_path)
    path = tmp_path / form.file
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(RequestError, match=path.name):
        load(source, **form.options)


def empty(data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("change", [cut, turned, foreign, empty])
def test_damage_is_a_sentence_with_the_file(change: Callable[[bytes], bytes], form: Format, tmp_path: Path) -> None:
    source = form.write(tmp_path)
    whole = load(source, **form.options)
    path = tmp_path / form.file
    path.write_bytes(change(path.read_bytes()))
    try:
        data = load(source, **form.options)
    except PetriscopeError as error:
        text = str(error)
        assert isinstance(error, RequestError) and path.name in text and "\n" not in text, text
    else:  # what is damaged may be no image, or nothing tells that it was another one
        assert change is turned and (data.fingerprint == whole.fingerprint or not form.sums)
