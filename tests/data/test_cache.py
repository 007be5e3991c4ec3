"""Entries of the cache come and go."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from petriscope.core.errors import PetriscopeError
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


def test_indexes_of_sources_count_too(folder: Path) -> None:
    (folder / "source.index").write_bytes(bytes(1000))
    os.utime(folder / "source.index", (1, 1))
    put("a", 2, folder)
    size = (folder / "a.npy").stat().st_size
    cache.prune(size + 1000)
    assert (folder / "source.index").exists()
    cache.prune(size)
    assert not (folder / "source.index").exists() and kept(folder) == {"a"}


def test_a_mapped_entry_stays_readable(folder: Path) -> None:
    put("a", 7, folder)
    found = cache.fetch("a", mapped=True)
    assert found is not None
    cache.prune(0)
    assert not kept(folder)
    assert (found[0] == 7).all()


def test_of_many_that_want_an_entry_one_stores_it(folder: Path) -> None:
    stored: list[int] = []

    def store() -> None:
        stored.append(1)
        cache.store("a", (100,), np.dtype(np.uint8), [np.full(100, 7, np.uint8)])

    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(lambda _: cache.fetch_or_store("a", True, store)[0], range(10)))
    assert len(stored) == 1 and all((array == 7).all() for array in found)
    assert kept(folder) == {"a"} and not list(folder.glob(".*"))
    assert [path.name for path in (folder / "locks").iterdir()] == ["a.lock"]


def test_entries_are_whole_while_others_evict_them(folder: Path) -> None:
    def want(number: int) -> bool:
        key, value = "abc"[number % 3], number % 3
        found, _ = cache.fetch_or_store(
            key, True, lambda: cache.store(key, (100,), np.dtype(np.uint8), [np.full(100, value, np.uint8)])
        )
        cache.prune(number % 4 * 100)
        return bool((found == value).all())

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(want, range(60)))


@pytest.mark.parametrize("what", ["no home", "a file in the way"])
def test_where_nothing_can_be_kept_the_advice_is_given(
    what: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "no home":
        monkeypatch.delenv("PETRISCOPE_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    else:
        (folder / "file").touch()
        monkeypatch.setenv("PETRISCOPE_CACHE", str(folder / "file"))
    with pytest.raises(PetriscopeError, match="set PETRISCOPE_CACHE to a folder that may be written"):
        cache.fetch_or_store("a", True, lambda: None)


def test_an_entry_is_checked_when_it_is_written_and_not_again_at_the_next_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = cache.make_key("just written")
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    cache.fetch_or_store(key, True, lambda: cache.store(key, (2, 3), np.dtype(np.uint8), [values]))
    with monkeypatch.context() as unread:
        unread.setattr(cache, "_checksum", lambda path: pytest.fail("it was read again"))
        found = cache.fetch(key, True)
    assert found is not None
    np.testing.assert_array_equal(found[0], values)
    with (folder / f"{key}.npy").open("r+b") as handle:  # whatever changes it afterwards is found
        handle.seek(-1, 2)
        handle.write(b"\xff")
    assert cache.fetch(key, True) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
@pytest.mark.parametrize("suffix", [".json", ".npy", ".sum"])
def test_a_pipe_in_place_of_a_file_is_damage(folder: Path, suffix: str) -> None:
    """To open it for reading or writing would wait for another process without end."""
    put("a", 1, folder)
    (folder / f"a{suffix}").unlink()
    os.mkfifo(folder / f"a{suffix}")
    stored: list[int] = []

    def store() -> None:
        stored.append(1)
        put("a", 3, folder)

    array, _ = cache.fetch_or_store("a", False, store)
    assert array[0] == (1 if suffix == ".sum" else 3) and len(stored) == (suffix != ".sum")
    assert (folder / f"a{suffix}").is_file()
