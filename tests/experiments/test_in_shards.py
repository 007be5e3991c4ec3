"""Prediction in shards: every image once, whatever is killed, whatever holds the images; and no answer under a guarantee that was
withdrawn."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fitted import fitted, images
from petriscope import api, cli
from petriscope.core.errors import PetriscopeError, RequestError
from petriscope.core.files import locked
from petriscope.core.recipe import Part
from petriscope.data.sources import units
from petriscope.experiments import in_shards
from petriscope.inference import shards as written
from petriscope.inference.drawn import Drawn
from petriscope.inference.likeness import compare_files
from petriscope.inference.predictor import load_model, save_model
from petriscope.trust.abstention import NOT_SURE, UNCLAIMED
from petriscope.trust.verdict import WITHDRAWN
from s3_server import s3_bucket

SHAPE = (16, 16, 3)
COUNT = 90
ASKED = {"max_error": 0.02, "set_coverage": 0.9}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file with all that is fitted on val."""
    network = Part(name="simple-cnn", widths=[8, 8, 16], hidden=16)
    predictor = fitted(network, SHAPE)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(path, predictor.model.state_dict(), predictor, {})
    return path


@pytest.fixture(scope="module")
def content() -> list[bytes]:
    """Image files."""
    return [png(image) for image in images(COUNT, SHAPE, 5)]


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", compress_level=1)
    return out.getvalue()


def folder_of(place: Path, content: list[bytes]) -> Path:
    for number, data in enumerate(content):
        path = place / str(number // 40) / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return place


def tar_of(path: Path, content: list[bytes], first: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for number, data in enumerate(content, first):
            for name, each in ((f"{number:03d}.png", data), (f"{number:03d}.cls", b"1")):
                info = tarfile.TarInfo(name)
                info.size = len(each)
                archive.addfile(info, io.BytesIO(each))
    return path


def tars_of(place: Path, content: list[bytes], suffix: str = "tar") -> Path:
    for number in range(3):
        tar_of(place / f"cells-{number}.{suffix}", content[30 * number : 30 * number + 30], 30 * number)
    return place


def table_of(path: Path, content: list[bytes | None]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    column = [None if each is None else {"bytes": each, "path": "x.png"} for each in content]
    pq.write_table(pa.table({"image": column, "label": [0] * len(content)}), path, row_group_size=25)
    return path


def rows_in(folder: Path) -> pd.DataFrame:
    """All rows, in the order of the shards."""
    return pd.concat([pd.read_parquet(path) for path in sorted(folder.glob("shard-*.parquet"))], ignore_index=True)


def in_one_go(model: Path, content: list[bytes], **asked: Any) -> pd.DataFrame:
    return api.predict(model, content, quiet=True, **asked)


def same(rows: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Whether rows are those of `api.predict`, but for the names of the images."""
    assert rows["image"].is_unique and len(rows) == len(expected)
    for name in expected.columns.drop("image"):
        if expected[name].dtype == float:
            np.testing.assert_allclose(rows[name], expected[name], atol=1e-6)
        else:
            assert rows[name].fillna("").tolist() == expected[name].fillna("").tolist(), name


# ------------------------------------------------------------------------------------------------------------- sources


@pytest.mark.parametrize("kind", ["folder", "tar", "tar.gz", "pattern", "table", "folder of tables"])
def test_rows_are_those_of_predict(kind: str, model: Path, content: list[bytes], tmp_path: Path) -> None:
    make = {
        "folder": lambda: folder_of(tmp_path / "set", content),
        "tar": lambda: tars_of(tmp_path / "set", content),
        "tar.gz": lambda: tars_of(tmp_path / "set", content, "tar.gz"),
        "pattern": lambda: tars_of(tmp_path / "set", content) / "cells-{0..2}.tar",
        "table": lambda: table_of(tmp_path / "set.parquet", content),
        "folder of tables": lambda: (
            (
                table_of(tmp_path / "set/a.parquet", content[:50]),
                table_of(tmp_path / "set/b.parquet", content[50:]),
            )[0].parent
        ),
    }
    made = api.predict_in_shards(model, make[kind](), tmp_path / "out", 3, jobs=1, quiet=True, **ASKED)
    rows = rows_in(tmp_path / "out")
    same(rows, in_one_go(model, content, **ASKED))
    assert made.images == COUNT and made.unreadable == 0 and len(made.shards) == 3 and made.withdrawn == 0
    answers = rows["answer"].value_counts()
    assert made.abstained == answers.pop(NOT_SURE) and made.answers == answers.to_dict()
    assert made.far == (rows["ood"] > 1).sum() and made.confidence == pytest.approx(rows["confidence"].mean())
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")) == [
        "job.json",
        "listing.parquet",
        *(f"shard-0000{number}.parquet" for number in range(3)),
        "summary.json",
    ]


def test_damaged_images_are_rows_with_a_reason(
    model: Path, content: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    bad = [*content[:20], b"no image", *content[20:40]]
    folder = folder_of(tmp_path / "set", bad)
    words = [
        "petriscope",
        "predict",
        str(model),
        str(folder),
        "--out",
        str(tmp_path / "out"),
        "--shards",
        "2",
        "--jobs",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert "1 of 41 images could not be read, the first: " in capsys.readouterr().err
    rows = rows_in(tmp_path / "out")
    same(rows, in_one_go(model, bad).assign(error=rows["error"]))
    assert rows["error"].notna().tolist() == [number == 20 for number in range(41)]
    assert "020.png cannot be read as an image" in rows["error"][20] and rows["p_round"].isna().sum() == 1


def test_damaged_files_of_images(model: Path, content: list[bytes], tmp_path: Path) -> None:
    whole = tars_of(tmp_path / "set", content)
    cut = whole / "cells-1.tar"
    cut.write_bytes(cut.read_bytes()[: 512 * 40])
    made = api.predict_in_shards(model, whole, tmp_path / "out", 3, jobs=1, quiet=True)
    rows = rows_in(tmp_path / "out")
    (wrong,) = rows.index[rows["error"].notna()]
    assert rows["image"][wrong] == str(cut) and "the images behind that are missing" in rows["error"][wrong]
    assert made.images == len(rows) and 60 < len(rows) < 90 and rows["answer"][wrong + 1 :].notna().all()

    table = table_of(tmp_path / "some.parquet", [*content[:5], None, *content[5:9]])
    api.predict_in_shards(model, table, tmp_path / "other", 1, jobs=1, quiet=True)
    rows = rows_in(tmp_path / "other")
    assert rows.index[rows["error"].notna()].tolist() == [5] and "no bytes of an image" in rows["error"][5]
    assert rows["image"].tolist() == [f"{table} row {row}" for row in range(10)]


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """A bucket of S3, as moto serves it."""
    with s3_bucket("many-cells") as system:
        yield system


def test_in_s3(bucket: Any, model: Path, content: list[bytes], tmp_path: Path) -> None:
    bucket.put(f"{folder_of(tmp_path / 'set', content)}/", "many-cells/folder/", recursive=True)
    bucket.pipe_file("many-cells/folder/notes.txt", b"x")
    bucket.put(f"{tars_of(tmp_path / 'tars', content)}/", "many-cells/tars/", recursive=True)
    bucket.put(f"{tars_of(tmp_path / 'packed', content, 'tgz')}/", "many-cells/packed/", recursive=True)
    bucket.put(str(table_of(tmp_path / "t.parquet", content)), "many-cells/t.parquet")
    expected = in_one_go(model, content)
    for number, where in enumerate(["folder", "tars", "tars/cells-{0..2}.tar", "packed", "t.parquet"]):
        out = tmp_path / f"out{number}"
        api.predict_in_shards(model, f"s3://many-cells/{where}", out, 2, jobs=1, quiet=True)
        rows = rows_in(out)
        same(rows, expected)
        assert rows["image"].str.startswith(f"s3://many-cells/{where.partition('/')[0]}").all()
    with pytest.raises(PetriscopeError, match="s3://many-cells/none"):
        api.predict_in_shards(model, "s3://many-cells/none", tmp_path / "none", 2, jobs=1, quiet=True)
    assert not (tmp_path / "none").exists()


def test_an_address_that_fails_is_no_damaged_image(
    bucket: Any, model: Path, content: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put(f"{folder_of(tmp_path / 'set', content[:6])}/", "many-cells/failing/", recursive=True)
    asked = (model, "s3://many-cells/failing", tmp_path / "out", 2)
    load = units.Source.load
    with monkeypatch.context() as patch:
        patch.setattr(units.Source, "load", lambda *a: (_ for _ in ()).throw(ConnectionError("gone")))
        with pytest.raises(PetriscopeError, match=r"s3://many-cells/failing/0/00.\.png cannot be read: gone"):
            api.predict_in_shards(*asked, jobs=1, quiet=True)
    bucket.rm("many-cells/failing/0/001.png")
    made = api.predict_in_shards(*asked, jobs=1, quiet=True)
    assert load is units.Source.load and (made.images, made.unreadable) == (6, 1)
    assert "it is no longer there" in str(made.shards[0].facts.first_unreadable)


def test_what_is_left_out_is_said(
    model: Path, content: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path / "set", content[:4])
    (folder / "notes.txt").write_text("x")
    (folder / ".hidden").write_text("x")
    table_of(folder / "labels.parquet", content[:2])
    api.predict_in_shards(model, folder, tmp_path / "out", 9, jobs=1)
    said = capsys.readouterr().err
    assert "1 .txt file (notes.txt)" in said and "1 hidden or system file (.hidden)" in said
    assert "1 Parquet file beside image files" in said and "note: 4 shards, not 9" in said


# ------------------------------------------------------------------------------------------------------------ resuming


def start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "petriscope", *words], stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def test_killed_and_resumed(model: Path, content: list[bytes], tmp_path: Path) -> None:
    """Two processes, which are killed with the one that started them."""
    folder = folder_of(tmp_path / "set", content * 20)
    out = tmp_path / "out"
    words = f"predict {model} {folder} --out {out} --shards 20 --jobs 2".split()
    process = start(words)
    while len([*out.glob("shard-*.parquet")]) < 2:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    until = time.monotonic() + 20
    while "work-on-shards" in "".join(_commands(str(out))) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _commands(str(out))  # the others have ended with it
    before = {path: path.stat().st_mtime_ns for path in out.glob("shard-*.parquet")}
    assert 2 <= len(before) < 20 and not (out / "summary.json").exists()
    in_shards.predict_in_shards(model, [str(folder)], out, 20, jobs=1, quiet=True)
    rows = rows_in(out)
    assert sorted(rows["image"]) == sorted(map(str, folder.rglob("*.png"))) and len(rows) == 20 * COUNT
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not (out / "locks").exists() and not [path for path in out.iterdir() if path.suffix == ".tmp"]


def _commands(word: str) -> list[str]:
    """The command lines of processes that have a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        found += [text] if word in text and "pytest" not in text else []
    return found


def test_what_is_done_is_not_done_again(
    model: Path, content: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = folder_of(tmp_path / "set", content), tmp_path / "out"
    done = []
    predict, fails = written.predict_shard, 2

    def counted(predictor: Any, blocks: Any, tta: Any, path: Path, *rest: Any) -> Any:
        nonlocal fails
        if path.name == "shard-00002.parquet" and fails:
            fails -= 1
            raise PetriscopeError("no more")
        done.append(path.name)
        return predict(predictor, blocks, tta, path, *rest)

    monkeypatch.setattr(in_shards, "predict_shard", counted)
    for _ in range(2):
        with pytest.raises(PetriscopeError, match="no more"):
            api.predict_in_shards(model, folder, out, 4, jobs=1, quiet=True, **ASKED)
    answer = in_shards.answer_shard
    monkeypatch.setattr(
        in_shards, "answer_shard", lambda *a: pytest.fail("answered too early") if fails else answer(*a)
    )
    (folder / "more.png").write_bytes(content[0])  # what was listed counts
    api.predict_in_shards(model, folder, out, 4, jobs=1, quiet=True, **ASKED)
    assert done == [f"shard-0000{number}.parquet" for number in range(4)] and len(rows_in(out)) == COUNT
    summary = (out / "summary.json").stat().st_mtime_ns
    again = api.predict_in_shards(model, folder, out, 4, jobs=1, quiet=True, **ASKED)
    assert len(done) == 4 and again.images == COUNT and (out / "summary.json").stat().st_mtime_ns == summary


def test_another_process_is_waited_for(model: Path, content: list[bytes], tmp_path: Path) -> None:
    folder, out = folder_of(tmp_path / "set", content), tmp_path / "out"
    asked = (model, [str(folder)], out, 2)
    in_shards._begin(out, str(model), _asked(model, folder, 2), "cpu")
    work = in_shards._resumed(out, _asked(model, folder, 2), "cpu")
    with locked(out / "locks" / "0.lock", lambda: None):
        work.predict()
        assert work.missing == [0]
    assert in_shards.predict_in_shards(*asked, jobs=1, quiet=True).images == COUNT


@pytest.mark.parametrize(
    ("max_error", "finished", "missing"), [(None, False, [4]), (0.1, False, [0, 1, 4]), (0.1, True, [4])]
)
def test_which_shards_are_missing(max_error: float | None, finished: bool, missing: list[int], tmp_path: Path) -> None:
    options = in_shards.Options(max_error=max_error)
    job = in_shards.Job(version="", model="", digest="", sources=[], asked=5, options=options, starts=[*range(6)])
    work = in_shards.Work(tmp_path, job, "cpu")
    (tmp_path / "pending").mkdir()
    for path in (work.final(0), work.pending(1), work.pending(2), work.sample(2), work.final(3), work.sample(3)):
        path.touch()
    if finished:
        (tmp_path / "summary.json").touch()
    assert work.missing == missing == [number for number in range(5) if not work.is_predicted(number)]


def _asked(model: Path, folder: Path, shards: int) -> dict[str, Any]:
    return {
        "version": in_shards.__version__,
        "digest": in_shards._digest(model),
        "sources": [str(folder)],
        "asked": shards,
        "options": in_shards.Options(),
    }


def test_resuming_with_something_else_is_refused(model: Path, content: list[bytes], tmp_path: Path) -> None:
    folder, out = folder_of(tmp_path / "set", content[:6]), tmp_path / "out"
    api.predict_in_shards(model, folder, out, 2, jobs=1, quiet=True)
    predictor = load_model(model)
    other = tmp_path / "other.safetensors"
    save_model(other, predictor.model.state_dict(), replace(predictor, classes=("a", "b", "c", "d")), {})
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(model.read_bytes())
    assert api.predict_in_shards(moved, folder, out, 2, jobs=1, quiet=True).images == 6
    for given, words in (
        ((other, folder, out, 2), "another model; give the command"),
        ((model, folder / "0", out, 2), "another source; "),
        ((model, folder, out, 3), "another number of shards; "),
    ):
        with pytest.raises(RequestError, match=words):
            api.predict_in_shards(*given, jobs=1, quiet=True)
    with pytest.raises(RequestError, match="another --max-error and another --scale"):
        api.predict_in_shards(model, folder, out, 2, jobs=1, quiet=True, max_error=0.1, scale=1.5)


@pytest.mark.parametrize("asked", [{}, ASKED])
def test_a_shard_that_is_lost_after_the_end_is_missed(
    asked: dict[str, Any], model: Path, content: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (model, folder_of(tmp_path / "set", content), tmp_path / "out", 3)
    api.predict_in_shards(*given, jobs=1, quiet=True, **asked)
    expected, shard = rows_in(tmp_path / "out"), tmp_path / "out" / "shard-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:500])
    with pytest.raises(RequestError, match=r"shard-00001\.parquet is damaged"):
        api.predict_in_shards(*given, jobs=1, quiet=True, **asked)
    shard.unlink()
    assert "listed then" not in capsys.readouterr().err
    assert api.predict_in_shards(*given, jobs=1, **asked).images == COUNT
    said = capsys.readouterr().err
    assert "1 of 3 shards are not in" in said and "images that were added or changed since are not looked for" in said
    pd.testing.assert_frame_equal(rows_in(tmp_path / "out"), expected)


def test_damaged_files_of_a_job_are_named(
    model: Path, content: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = folder_of(tmp_path / "set", content), tmp_path / "out"
    asked = (model, folder, out, 3)
    with monkeypatch.context() as patch:
        patch.setattr(in_shards.Work, "compare", lambda self: (_ for _ in ()).throw(PetriscopeError("killed")))
        with pytest.raises(PetriscopeError, match="killed"):
            api.predict_in_shards(*asked, jobs=1, quiet=True, **ASKED)
    names = ("pending/shard-00001.npz", "pending/shard-00001.parquet", "listing.parquet", "job.json")
    for name in names:
        path = out / name
        kept = path.read_bytes()
        path.write_bytes(kept[: len(kept) // 2])
        (out / "pending/shard-00002.npz").unlink(missing_ok=True)  # so that the list is read
        with pytest.raises(RequestError, match=name):
            api.predict_in_shards(*asked, jobs=1, quiet=True, **ASKED)
        path.write_bytes(kept)
    assert api.predict_in_shards(*asked, jobs=1, quiet=True, **ASKED).images == COUNT
    (out / "summary.json").unlink()
    (out / "shard-00001.parquet").unlink()
    assert api.predict_in_shards(*asked, jobs=1, quiet=True, **ASKED).images == COUNT and len(rows_in(out)) == COUNT


def test_wrong_requests_leave_nothing(model: Path, content: list[bytes], tmp_path: Path) -> None:
    folder, out = folder_of(tmp_path / "set", content[:6]), tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    for words, given in (
        ("no such image", (model, tmp_path / "none", out, 2)),
        ("no images in", (model, tmp_path / "empty", out, 2)),
        ("no model at", (tmp_path / "none", folder, out, 2)),
        ("has other files, such as notes.txt", (model, folder, tmp_path / "full", 2)),
        ("from 1 to 100,000", (model, folder, out, 0)),
    ):
        with pytest.raises(RequestError, match=words):
            api.predict_in_shards(*given, jobs=1, quiet=True)
    with pytest.raises(RequestError, match="scale is not estimated"):
        api.predict_in_shards(model, folder, out, 2, scale="estimated")
    with pytest.raises(RequestError, match="max_error must be between"):
        api.predict_in_shards(model, folder, out, 2, max_error=2.0)
    assert not out.exists()


# ---------------------------------------------------------------------------------------------------------- guarantees


def darker(content: list[bytes]) -> list[bytes]:
    return [png(np.asarray(Image.open(io.BytesIO(each))) // 2) for each in content]


def test_withdrawn_for_all(
    model: Path, content: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path / "set", darker(content))
    made = api.predict_in_shards(model, folder, tmp_path / "out", 3, jobs=1, quiet=True, **ASKED)
    rows = rows_in(tmp_path / "out")
    assert (rows["answer"] == NOT_SURE).all() and rows["why"].str.startswith(WITHDRAWN).all()
    assert made.test is not None and made.test.withdrawn and made.withdrawn == 3 and made.answers == {}
    capsys.readouterr()
    alone = in_one_go(model, darker(content), **ASKED)
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("GUARANTEES WITHDRAWN: ") and (alone["why"] == rows["why"]).all()
    assert (tmp_path / "out/shift.html").is_file()
    api.predict_in_shards(model, folder, tmp_path / "all", 3, jobs=1, quiet=True, without_guarantee=True, **ASKED)
    assert (rows_in(tmp_path / "all").query("answer != @NOT_SURE")["why"] == UNCLAIMED).all()
    assert capsys.readouterr().err.splitlines()[0].startswith("GUARANTEES WITHDRAWN: ")


def test_withdrawn_for_one_shard(
    model: Path, content: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = images(300, SHAPE, 8)
    many[:20] = 0.7 * many[:20]
    folder = folder_of(tmp_path / "set", [png(image) for image in many])
    made = api.predict_in_shards(model, folder, tmp_path / "out", 15, jobs=1, quiet=True, **ASKED)
    assert made.test is not None and not made.test.withdrawn
    assert made.shards[0].facts.withdrawn and made.withdrawn < 5
    rows = pd.read_parquet(tmp_path / "out/shard-00000.parquet")
    assert (rows["answer"] == NOT_SURE).all()
    good = next(shard.file for shard in made.shards if not shard.facts.withdrawn)
    assert (pd.read_parquet(tmp_path / "out" / good)["answer"] != NOT_SURE).any()
    said = capsys.readouterr().err
    assert "of 15 shards, " in said and "the first: shard-00000.parquet" in said and "GUARANTEES WITHDRAWN" in said


def test_copies_are_compared_once(model: Path, content: list[bytes], tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "set", [*content, *content[:5] * 9])
    made = api.predict_in_shards(model, folder, tmp_path / "out", 3, jobs=1, quiet=True, **ASKED)
    alone = compare_files(load_model(model), api.as_files(content), quiet=True).test
    assert made.test is not None and (made.test.n, made.test.copies) == (len(content), 45)
    assert made.test.p == pytest.approx(alone.p, abs=0.01)


def test_no_file_has_answers_before_all_were_compared(
    model: Path, content: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = folder_of(tmp_path / "set", darker(content)), tmp_path / "out"
    monkeypatch.setattr(in_shards.Work, "compare", lambda self: (_ for _ in ()).throw(PetriscopeError("killed")))
    with pytest.raises(PetriscopeError, match="killed"):
        api.predict_in_shards(model, folder, out, 3, jobs=1, quiet=True, **ASKED)
    files = [path for path in out.rglob("*.parquet") if path.name != "listing.parquet"]
    assert len(files) == 3 and all("answer" not in pq.read_schema(path).names for path in files)


def test_the_sample_does_not_depend_on_the_shards() -> None:
    rng = np.random.default_rng(0)
    from petriscope.trust.two_sample import MOST, traits_of

    n = 4 * MOST
    keys = rng.permutation(n).astype(np.uint64)
    whole, parts = Drawn(), [Drawn() for _ in range(3)]
    for start in range(0, n, 250):
        each = keys[start : start + 250]
        for sample in (whole, parts[start // 250 % 3]):
            rows = sample.wanted(each)
            rows = rows[np.argsort(each[rows])]
            values = each[rows].astype(np.float32)
            traits = traits_of(
                values[:, None] / 1e6, values, each[rows].astype(np.int64), None, np.stack([values] * 4, 1)
            )
            sample.add(len(each), each[rows], traits, each[rows[:6], None, None, None])
    joined = Drawn()
    for part in parts:
        joined.merge(part)
    for sample in (whole, joined):
        assert sample.count == n and sample.keys.tolist() == [*range(MOST)] and sample.traits is not None
        assert sample.traits.predicted.tolist() == [*range(MOST)] and sample.shown is not None
        assert sample.shown.ravel().tolist() == [*range(6)]


def test_a_finished_job_is_looked_through(model: Path, content: list[bytes], tmp_path: Path) -> None:
    place, out = folder_of(tmp_path / "new", content[:30]), tmp_path / "out"

    def again() -> None:
        api.predict_in_shards(model, [str(place)], out, 3, jobs=1, quiet=True)

    again()
    again()
    first, second = out / "shard-00000.parquet", out / "shard-00001.parquet"
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(RequestError, match=r"shard-00000\.parquet.*it is another shard"):
        again()
    damaged = bytearray(kept)
    damaged[60:68] = b"\xff" * 8
    first.write_bytes(damaged)
    with pytest.raises(RequestError, match=r"shard-00000\.parquet is damaged"):
        again()
    first.unlink()
    os.mkfifo(first)
    with pytest.raises(RequestError, match=r"shard-00000\.parquet.*not a file"):
        again()
    first.unlink()
    first.write_bytes(kept)
    again()
    summary = out / "summary.json"
    summary.unlink()
    summary.mkdir()
    with pytest.raises(RequestError, match=r"summary\.json is not a file"):
        again()


@pytest.mark.parametrize("starts", [[], [0], [1, 2], [0, 5, 3]])
def test_starts_that_are_no_shards_are_refused(
    starts: list[int], model: Path, content: list[bytes], tmp_path: Path
) -> None:
    place, out = folder_of(tmp_path / "new", content[:6]), tmp_path / "out"
    api.predict_in_shards(model, [str(place)], out, 2, jobs=1, quiet=True)
    job = json.loads((out / "job.json").read_text())
    (out / "job.json").write_text(json.dumps({**job, "starts": starts}))
    with pytest.raises(RequestError, match=r"job\.json"):
        api.predict_in_shards(model, [str(place)], out, 2, jobs=1, quiet=True)
