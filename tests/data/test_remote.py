"""Sources at an address: in memory, in a zip, on a server, and in S3 as moto serves it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from formats import FORMATS, write_folder, write_tar, write_zip
from small_sources import load, make_npz, make_table

from petriscope.core.errors import DataError, MissingSource, PetriscopeError, RequestError
from petriscope.data import cache
from petriscope.data.sources import remote
from s3_server import s3_bucket

fsspec = pytest.importorskip("fsspec")


def in_memory(path: Path, name: str) -> str:
    """A file or folder, copied to the file system in memory."""
    system = fsspec.filesystem("memory")
    for file in [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]:
        below = "" if file == path else f"/{file.relative_to(path)}"
        system.pipe_file(f"/{name}{below}", file.read_bytes())
    return f"memory://{name}"


@pytest.fixture(autouse=True)
def empty_memory() -> Iterator[None]:
    yield
    fsspec.filesystem("memory").store.clear()


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz", "hub", "hdf5", "zarr"])
def test_as_on_the_disk(kind: str, tmp_path: Path) -> None:
    form = FORMATS[kind]
    for library in form.needs:
        pytest.importorskip(library)
    place = Path(form.write(tmp_path))
    one, two = load(place, **form.options), load(in_memory(place, place.name), **form.options)
    assert one.fingerprint == two.fingerprint
    for name, part in one.splits.items():
        assert part.ids.tolist() == two.split(name).ids.tolist()


def test_only_what_has_changed_is_copied_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(write_folder(tmp_path))
    source = in_memory(folder, "cells")
    load(source)
    system = fsspec.filesystem("memory")
    opened = []
    whole = type(system).open
    monkeypatch.setattr(
        type(system), "open", lambda self, path, *a, **k: opened.append(path) or whole(self, path, *a, **k)
    )
    load(source)
    assert opened == []
    files = sorted(folder.rglob("*.png"))
    system.pipe_file("/cells/train/cat/more.png", files[-1].read_bytes())
    opened.clear()
    assert len(load(source).split("train")) == 7 and [path.rpartition("/")[2] for path in opened] == ["more.png"]
    system.rm("/cells/train/cat/more.png")
    assert len(load(source).split("train")) == 6


def test_messages_name_the_address(tmp_path: Path) -> None:
    folder = Path(write_folder(tmp_path))
    (folder / "train/cat/notes.txt").write_text("x")
    source = in_memory(folder, "cells")
    assert load(source).warnings == (f"{source}: left out 1 .txt file (train/cat/notes.txt)",)
    path = tmp_path / "bad.zip"
    path.write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"^memory://bad\.zip is damaged"):
        load(in_memory(path, "bad.zip"))
    with pytest.raises(MissingSource, match="there is nothing at memory://none"):
        load("memory://none")


def test_tables_and_npz(tmp_path: Path) -> None:
    table = make_table(tmp_path / "t")
    in_memory(table.parent, "t")
    npz = make_npz(tmp_path / "n").rename(tmp_path / "pneumoniamnist.npz")
    assert load(in_memory(npz, npz.name)).classes == ("normal", "pneumonia")


def test_within_a_zip(tmp_path: Path) -> None:
    path = write_zip(tmp_path)
    assert load(f"zip://train::{path}").classes == ("cat", "dog")


def test_over_http(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    write_tar(tmp_path, "set.tar.gz")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        where = f"http://127.0.0.1:{server.server_address[1]}"
        assert load(f"{where}/set.tar.gz").classes == ("cat", "dog")
        with pytest.raises(PetriscopeError, match=r"none\.tar"):
            load(f"{where}/none.tar")
    finally:
        server.shutdown()
        server.server_close()


def test_s3(tmp_path: Path) -> None:
    with s3_bucket("cells-bucket") as system:
        folder = write_folder(tmp_path)
        system.put(f"{folder}/", "cells-bucket/cells/", recursive=True)
        data = load("s3://cells-bucket/cells")
        assert data.fingerprint == load(folder).fingerprint
        with pytest.raises(PetriscopeError, match="s3://cells-bucket/none"):
            load("s3://cells-bucket/none")


def test_unknown_addresses_and_missing_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="is no address that can be read"):
        load("nothing://x")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(RequestError, match=r"pip install 'petriscope\[remote\]'"):
        load("memory://x")


def test_names_that_lead_out_of_the_copy(tmp_path: Path) -> None:
    folder = Path(write_folder(tmp_path))
    source = in_memory(folder, "cells")
    system = fsspec.filesystem("memory")
    system.store["/cells/../../x.png"] = system.store["/cells/train/cat/slide0-00.png"]
    with pytest.raises(DataError, match=r"memory://?cells.*x\.png.* would lie outside"):
        load(source)


def test_the_copy_is_in_the_cache(tmp_path: Path) -> None:
    folder = Path(write_folder(tmp_path))
    source = in_memory(folder, "cells")
    load(source)
    copied = remote.copy(source)
    assert cache.cache_dir() in copied.parents
    shutil.rmtree(copied)
    assert len(load(source).split("train")) == 6
