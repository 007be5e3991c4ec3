"""Downloads, against a server of our own."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import stat
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from small_sources import load, make_cifar, make_npz

from petriscope.core.errors import PetriscopeError, RequestError
from petriscope.data.cache import cache_dir
from petriscope.data.sources import known, medmnist


class Server(ThreadingHTTPServer):
    content = b""
    status = 200
    cut: int | None = None  # bytes of the body after which the connection breaks
    asked = 0
    path = ""  # that was asked for last

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked += 1
        self.server.path = self.path
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content[: self.server.cut])

    def log_message(self, format: str, *args: object) -> None:
        pass


def downloaded():
    """What is in the cache beside locks and indices."""
    return [path for path in cache_dir().iterdir() if path.name != "locks" and path.suffix != ".index"]


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def blood(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> known.Download:
    server.content = make_npz(tmp_path / "made").read_bytes()
    serve_as(server, "bloodmnist", monkeypatch)
    return known.of_medmnist("bloodmnist")


def serve_as(server: Server, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server stand for the one that has a file of MedMNIST."""
    name, _, size = source.partition(":")
    found = medmnist.COLLECTIONS[name]
    sums = list(found.md5)
    sums[medmnist.SIZES.index(int(size or medmnist.SMALLEST))] = hashlib.md5(server.content).hexdigest()
    changed = {**medmnist.COLLECTIONS, name: replace(found, md5=tuple(sums))}
    monkeypatch.setattr(medmnist, "COLLECTIONS", changed)
    monkeypatch.setattr(medmnist, "URL", f"{server.url}/{{file}}")


def test_downloaded_once(server: Server, blood: known.Download) -> None:
    assert len(load("bloodmnist").split("train")) == 12
    assert len(load("bloodmnist").split("train")) == 12
    assert server.asked == 1
    assert [path.name for path in downloaded()] == ["bloodmnist.npz"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(blood.path.stat().st_mode) == 0o666 & ~mask  # others may share the cache


@pytest.mark.parametrize("before", [None, b"damaged"])
def test_a_broken_download_leaves_what_was_there(server: Server, blood: known.Download, before: bytes | None) -> None:
    if before is not None:
        cache_dir().mkdir()
        blood.path.write_bytes(before)
    server.cut = 1000
    with pytest.raises(PetriscopeError, match=r"cannot download bloodmnist .*1000 bytes read"):
        load("bloodmnist")
    assert [path.read_bytes() for path in downloaded()] == ([] if before is None else [before])
    server.cut = None
    assert load("bloodmnist").shape == (8, 9, 3)


def test_a_server_without_the_file(server: Server, blood: known.Download) -> None:
    server.status = 404
    with pytest.raises(PetriscopeError, match=r"404"):
        load("bloodmnist")


def test_a_wrong_checksum(server: Server, blood: known.Download) -> None:
    server.content += b"x"
    with pytest.raises(PetriscopeError, match=rf"not {blood.md5}.*--data PATH"):
        load("bloodmnist")
    assert not downloaded() and server.asked == 1


def test_a_damaged_copy_is_replaced(server: Server, blood: known.Download) -> None:
    cache_dir().mkdir()
    blood.path.write_bytes(b"damaged")
    assert load("bloodmnist").shape == (8, 9, 3)


def test_no_network(blood: known.Download, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(medmnist, "URL", f"http://127.0.0.1:{port}/{{file}}")
    start = time.monotonic()
    with pytest.raises(PetriscopeError) as caught:
        load("bloodmnist")
    text = str(caught.value)
    assert str(cache_dir() / "bloodmnist.npz") in text and blood.md5 in text and "--data PATH" in text
    assert time.monotonic() - start < 5 and caught.value.exit_status == 1


def test_a_server_that_says_nothing(blood: known.Download, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "TIMEOUT", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(medmnist, "URL", f"http://127.0.0.1:{silent.getsockname()[1]}/{{file}}")
        with pytest.raises(PetriscopeError, match="timed out"):
            load("bloodmnist")


def test_cifar_is_unpacked_by_name(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_cifar(tmp_path / "made")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for file in folder.iterdir():
            tar.add(file, f"cifar-10-batches-py/{file.name}")
        for name in ("../escaped", "/tmp/escaped", "cifar-10-batches-py/more"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
        link = tarfile.TarInfo("cifar-10-batches-py/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    server.content = archive.getvalue()
    md5 = hashlib.md5(server.content).hexdigest()
    monkeypatch.setattr(known, "CIFAR10", replace(known.CIFAR10, url=server.url, md5=md5))
    first = load("cifar10")
    unpacked = cache_dir() / "cifar-10-batches-py"
    assert {file.name for file in unpacked.iterdir()} == {file.name for file in folder.iterdir()} | {"checksums.json"}
    (unpacked / "test_batch").write_bytes(b"damaged")
    assert load("cifar10").fingerprint == first.fingerprint and server.asked == 1


def test_an_archive_that_lacks_a_file(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz"):
        pass
    server.content = archive.getvalue()
    md5 = hashlib.md5(server.content).hexdigest()
    monkeypatch.setattr(known, "CIFAR10", replace(known.CIFAR10, url=server.url, md5=md5))
    with pytest.raises(PetriscopeError, match=r"lacks .*data_batch_1"):
        load("cifar10")


@pytest.mark.parametrize("source", ["pathmnist", "pathmnist:64", "breastmnist:224"])
def test_sets_of_medmnist(source: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, _, size = source.partition(":")
    classes = medmnist.COLLECTIONS[name].classes
    every = {"train_labels": np.arange(12) % len(classes)}
    server.content = make_npz(tmp_path / "made", **every).read_bytes()
    serve_as(server, source, monkeypatch)
    data = load(source)
    file = f"{name}_{size}.npz" if size else f"{name}.npz"
    assert server.path == f"/file/{file}" and [path.name for path in downloaded()] == [file]
    assert data.classes == classes and len(data.split("test")) == 4
    load(source)
    assert server.asked == 1


def test_every_set_has_four_files_with_sums_of_their_own() -> None:
    sums = [md5 for found in medmnist.COLLECTIONS.values() for md5 in found.md5]
    assert len({*sums}) == len(sums) == 4 * 12
    assert all(len(md5) == 32 and int(md5, 16) >= 0 for md5 in sums)


def test_what_medmnist_does_not_have() -> None:
    with pytest.raises(RequestError, match="bloodmnist has images of 28, 64, 128, 224 pixels"):
        load("bloodmnist:32")
    with pytest.raises(RequestError, match="organmnist3d has volumes"):
        load("organmnist3d")


def test_a_file_of_medmnist_has_its_class_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_npz(tmp_path / "made")
    assert load(path).classes == ("0", "1")
    named = path.rename(path.with_name("PneumoniaMNIST_64.npz"))
    assert load(named).classes == ("normal", "pneumonia") and not load(named).warnings
    assert load(named, classes=("no", "yes")).classes == ("no", "yes")
    counts = replace(medmnist.COLLECTIONS["pneumoniamnist"], counts=(12, 4, 4))
    monkeypatch.setattr(medmnist, "COLLECTIONS", {"pneumoniamnist": counts})
    renamed = load(named.rename(path.with_name("download.npz")))
    assert renamed.classes == ("normal", "pneumonia")
    assert renamed.warnings[-1].endswith("has as many images as pneumoniamnist; its classes were named as there")
