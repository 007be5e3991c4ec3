"""Entries of the cache come and go."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from petriscope.data import cache


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PETRISCOPE_CACHE", str(tmp_path))
    return tmp_path


def put(key: str, when: int, folder: Path) -> None:
    cache.store(key, (100,), np.dtype(np.uint8), [np.full(100, when, np.uint8)])
    os.utime(folder / f"{key}.json", (when, when))


def kept(folder: Path) -> set[str]:
    arrays, notes = ({path.stem for path in folder.glob(pattern)} for pattern in ("*.npy", "*.json"))
    assert arrays == notes
    return arrays


def test_the_longest_unused_go_first(folder: Path) -> None:
    for when, key in enumerate("abc"):
        put(key, when, folder)
    assert cache.fetch("a", mapped=False) is not None  # which makes b the oldest
    cache.prune(2 * (folder / "a.npy").stat().st_size)
    assert kept(folder) == {"a", "c"}


def test_a_new_entry_makes_room_and_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put("a", 1, folder)
    monkeypatch.setattr(cache, "MOST_BYTES", 50)
    put("b", 2, folder)
    assert kept(folder) == {"b"}
    assert cache.fetch("b", mapped=False) is not None


def test_a_mapped_entry_stays_readable(folder: Path) -> None:
    put("a", 7, folder)
    found = cache.fetch("a", mapped=True)
    assert found is not None
    cache.prune(0)
    assert not kept(folder)
    assert (found[0] == 7).all()
