"""Files that a reader sees whole, and JSON that every reader understands."""

from __future__ import annotations

import errno
import json
import math
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petriscope.core.errors import PetriscopeError, RequestError
from petriscope.core.files import (
    atomic,
    expand_user,
    json_text,
    locked,
    more_files,
    new_folder,
    read_text,
    slug,
    user_path,
    write_text,
)

VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


def refuse(word: str) -> None:
    pytest.fail(f"{word} is no JSON")


@given(st.recursive(VALUES, lambda tree: st.lists(tree) | st.dictionaries(st.text(), tree), max_leaves=15))
def test_json_is_strict_and_keeps_all_finite_values(tree):
    def expected(value):
        if isinstance(value, dict):
            return {key: expected(each) for key, each in value.items()}
        if isinstance(value, list):
            return [expected(each) for each in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    text = json_text({"tree": tree})
    read = json.loads(text, parse_constant=refuse)
    assert text.endswith("\n") and read["tree"] == expected(tree)
    assert ("not_finite" in read) == (expected(tree) != tree)


def test_json_says_what_was_no_number():
    read = json.loads(json_text({"val": {"miou": math.nan, "n": 2}, "span": [0.0, math.inf]}), parse_constant=refuse)
    assert read == {
        "val": {"miou": None, "n": 2},
        "span": [0.0, None],
        "not_finite": {"val.miou": "nan", "span.1": "inf"},
    }


def test_an_interrupted_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "x"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), new_folder(tmp_path / "made") as (staging, _):
        (staging / "x").touch()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "made") as (staging, folder):
        (staging / "x").touch()
        assert folder == tmp_path / "made"
        assert not (tmp_path / "made").exists()
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["x"]


def test_a_disk_that_refuses_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PetriscopeError, match="cannot write"):
        write_text(tmp_path / "file" / "below", "x")


def test_an_error_about_another_file_is_not_said_of_the_one_that_is_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="input"), atomic(tmp_path / "out.csv"):
        (tmp_path / "input").read_text()
    with pytest.raises(FileNotFoundError, match="input"), new_folder(tmp_path / "out"):
        (tmp_path / "input" / "a").read_text()
    with pytest.raises(PetriscopeError, match=r"cannot write .*out\.csv"), atomic(tmp_path / "out.csv") as temporary:
        (temporary / "a").read_text()
    with pytest.raises(PetriscopeError, match=r"cannot write .*out: "), new_folder(tmp_path / "out") as (staging, _):
        (staging / "a").read_text()
    assert list(tmp_path.iterdir()) == []


@given(st.text())
def test_a_slug_is_a_file_name(label):
    name = slug(label)
    assert name and not set(name) & set("/\\\0 :*?") and not name.startswith(".")


@pytest.mark.parametrize("path", ["~nobody-is-called-so/x", "~nobody-is-called-so"])
def test_a_home_of_nobody_is_a_sentence(path):
    with pytest.raises(RequestError, match=r"no home folder for ~nobody-is-called-so; write the path in full"):
        expand_user(path)
    assert expand_user("a/~b") == Path("a/~b")


@pytest.mark.parametrize("text", ["~nobodyhere/x", "~nobodyhere", "x" * 300, "./" + "x" * 300, "a\0b", "x/" * 3000])
def test_a_path_that_cannot_be_is_refused_in_one_short_line(text, tmp_path):
    for beside in (None, tmp_path):
        with pytest.raises(RequestError) as caught:
            user_path(text, beside)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_a_path_of_a_user_is_found_beside_a_folder_or_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (
        user_path("~/x") == user_path("x", tmp_path) == user_path(tmp_path / "x", Path("elsewhere")) == tmp_path / "x"
    )
    (tmp_path / "file").touch()
    assert user_path("file/x", tmp_path) == tmp_path / "file" / "x"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("a: é".encode("latin-1"), r"UTF-8, from byte 4 on; is it a recipe\?"),
        ("a: é".encode("utf-16")[:-1], "UTF-8, from byte"),
        (b"x" * 101, "larger than 100 bytes"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, data, says):
    path = tmp_path / "r.yaml"
    path.mkdir() if data is None else path.write_bytes(data)
    with pytest.raises(RequestError, match=says):
        read_text(path, 100, "a recipe")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_read_without_a_byte_order_mark(tmp_path, encoding):
    (tmp_path / "x").write_text("é", encoding=encoding)
    assert read_text(tmp_path / "x", 100, "text") == "é"


@pytest.mark.parametrize("there", [True, False])
def test_more_files_come_into_a_folder_all_or_none(tmp_path, there):
    folder = tmp_path / "folder"
    if there:
        folder.mkdir()
        (folder / "old").touch()
    with pytest.raises(RuntimeError), more_files(folder) as staging:
        (staging / "new").touch()
        raise RuntimeError
    assert list(tmp_path.rglob("*")) == ([folder, folder / "old"] if there else [])
    with more_files(folder) as staging:
        (staging / "new").touch()
    assert {path.name for path in tmp_path.rglob("*")} == {"folder", "new", *(["old"] if there else [])}


def test_only_old_temporary_files_are_swept_and_nothing_else(tmp_path):
    names = [".x.0123456789abcdef.tmp", ".x.tmp", "x.0123456789abcdef.tmp", ".lock", ".folder.fedcba9876543210.tmp"]
    for when in ("old", "new"):
        for name in names:
            path = tmp_path / when / name
            (path / "below").mkdir(parents=True) if "folder" in name else (
                path.parent.mkdir(exist_ok=True),
                path.touch(),
            )
        if when == "old":
            for path in (tmp_path / when).iterdir():
                os.utime(path, (0, 0))
        write_text(tmp_path / when / "written", "x")
    assert {path.name for path in (tmp_path / "old").iterdir()} == {".x.tmp", names[2], ".lock", "written"}
    assert {path.name for path in (tmp_path / "new").iterdir()} == {*names, "written"}


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("Error: No space left on device (os error 28)")]
)
def test_a_full_disk_is_a_sentence_whatever_library_meets_it(tmp_path, error):
    with pytest.raises(PetriscopeError, match="no space left on the disk"), atomic(tmp_path / "x"):
        raise error
    assert not list(tmp_path.iterdir())


def test_text_of_any_kind_is_written(tmp_path):
    write_text(tmp_path / "x", "caf\udce9 \ud800 ä\r\n")
    assert (tmp_path / "x").read_bytes() == "caf\\xe9 \\ud800 ä\r\n".encode()


def test_where_there_are_no_locks_the_work_is_done(tmp_path, monkeypatch):
    def none(self, timeout=None):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", none)
    with locked(tmp_path / "lock", lambda: pytest.fail("nobody has it")):
        write_text(tmp_path / "x", "done")
    assert (tmp_path / "x").read_text() == "done"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    """As root, a file that replaces /dev/null would take it away from all programs."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    with atomic(pipe) as temporary:
        temporary.write_bytes(b"all of it")
    reader.join(10)
    assert got == [b"all of it"] and pipe.is_fifo() and [*tmp_path.iterdir()] == [pipe]


@pytest.mark.skipif(not Path("/dev/null").is_char_device(), reason="there is no /dev/null")
def test_the_null_device_stays_one():
    with atomic(Path("/dev/null")) as temporary:
        temporary.write_text("gone")
    assert Path("/dev/null").is_char_device()
