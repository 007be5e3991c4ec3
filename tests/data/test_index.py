"""Files are read again exactly when they may have changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from petriscope.core.errors import DataError
from petriscope.data import index


class Reader:
    """Counts the files that are read."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, path: Path) -> str:
        self.read.append(path.name)
        return index.content_digest(path)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    out = [tmp_path / f"{number}.png" for number in range(4)]
    for path in out:
        path.write_bytes(path.name.encode())
    return out


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are indexed long after they were written."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 3_000_000_000)


def overwrite(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def overwrite_in_secret(path: Path, content: bytes) -> None:
    """Of the same size and modification time as before."""
    before = path.stat()
    path.write_bytes(content[: before.st_size].ljust(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path: Path, content: bytes) -> None:
    before = path.stat()
    other = path.with_suffix(".new")
    other.write_bytes(content[: before.st_size].ljust(before.st_size))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def touch(path: Path, content: bytes) -> None:
    os.utime(path, (1, 1))


def leave(path: Path, content: bytes) -> None:
    pass


CHANGES = (overwrite, overwrite_in_secret, replace, touch, leave)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(CHANGES), st.integers(0, 3), st.binary(min_size=5, max_size=6)), max_size=6),
)
def test_what_is_recalled_is_what_is_there(
    files: list[Path], changes: list[tuple[Callable[[Path, bytes], None], int, bytes]]
) -> None:
    for change, number, content in changes:
        change(files[number], content)
        found = index.recall(files[0].with_name("index"), files, index.content_digest)
        assert found.values == [index.content_digest(path) for path in files]


def test_what_has_not_changed_is_not_read(files: list[Path], later: None) -> None:
    place, reader = files[0].with_name("index"), Reader()
    first = index.recall(place, files, reader)
    assert sorted(reader.read) == [path.name for path in files]
    assert index.recall(place, files, reader).values == first.values and len(reader.read) == 4
    replace(files[2], b"other")
    assert index.recall(place, files, reader).values != first.values and reader.read[4:] == ["2.png"]


@pytest.mark.parametrize("change", [overwrite, overwrite_in_secret, replace, touch])
def test_each_change_is_noticed(change: Callable[[Path, bytes], None], files: list[Path], later: None) -> None:
    place, reader = files[0].with_name("index"), Reader()
    index.recall(place, files, reader)
    time.sleep(0.02)  # longer than a tick of the file system
    change(files[1], b"1.pnx")
    index.recall(place, files, reader)
    assert reader.read[4:] == ["1.png"]


def test_files_just_written_are_read_once_more(files: list[Path]) -> None:
    place, reader = files[0].with_name("index"), Reader()
    for _ in range(2):
        index.recall(place, files, reader)
    assert len(reader.read) == 8


def test_all_is_read_again_on_demand(files: list[Path], later: None, monkeypatch: pytest.MonkeyPatch) -> None:
    place, reader = files[0].with_name("index"), Reader()
    index.recall(place, files, reader)
    monkeypatch.setenv(index.REHASH, "1")
    index.recall(place, files, reader)
    assert len(reader.read) == 8


DAMAGED = (b"", b"[", b"[1]", b'{"0.png": 3}', b"[" * 100_000, b"\xff\xfe", b'["index of files", 2, 1, 5, 0, 0]\n')


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_index_is_not_used(content: bytes, files: list[Path], later: None) -> None:
    place = files[0].with_name("index")
    first = index.recall(place, files, index.content_digest)
    place.write_bytes(content)
    assert index.recall(place, files, index.content_digest) == first


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_in_place_of_an_index_is_replaced(files: list[Path], later: None) -> None:
    place, reader = files[0].with_name("index"), Reader()
    os.mkfifo(place)
    for _ in range(2):
        index.recall(place, files, reader)
    assert place.is_file() and len(reader.read) == 4


def test_an_index_that_cannot_be_written(files: list[Path]) -> None:
    place = files[0] / "index"  # below a file
    assert index.recall(place, files, index.content_digest).values == [index.content_digest(path) for path in files]


def test_files_that_cannot_be_read(files: list[Path]) -> None:
    pipe, missing = files[0].with_name("pipe"), files[0].with_name("missing")
    os.mkfifo(pipe)
    found = index.recall(files[0].with_name("index"), [pipe, missing, files[0].parent, files[0]], index.content_digest)
    assert found.values[:3] == [""] * 3 and found.values[3]


def test_a_change_while_reading_is_noticed(files: list[Path]) -> None:
    found = index.recall(files[0].with_name("index"), files, index.content_digest)
    found.check_unchanged(list("abcd"))
    overwrite(files[3], b"longer than before")
    files[1].unlink()
    with pytest.raises(DataError, match="2 files changed while being read, the first: b;"):
        found.check_unchanged(list("abcd"))


def test_numbers_beyond_64_bits(files: list[Path], later: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems have such inodes, and files may be from a far future."""
    plain = index._status

    def far(path: Path | str) -> index.Status | None:
        status = plain(path)
        return status and (status[0], status[1], status[2], status[3] + (1 << 63))

    monkeypatch.setattr(index, "_status", far)
    place, reader = files[0].with_name("index"), Reader()
    first = index.recall(place, files, reader)
    assert index.recall(place, files, reader).values == first.values and len(reader.read) == 4


def test_the_order_of_files_does_not_matter(files: list[Path], later: None) -> None:
    place, reader = files[0].with_name("index"), Reader()
    first = index.recall(place, files, reader)
    assert index.recall(place, files[::-1], reader).values == first.values[::-1]
    assert index.recall(place, [str(path) for path in files[1:3]], reader).values == first.values[1:3]
    assert len(reader.read) == 4
