"""Shards that are read while training: the same images as otherwise, in windows, from the disk and from addresses."""

from __future__ import annotations

import tarfile
import threading
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from formats import FORMATS, png
from small_sources import load, make_folders, some_images
from test_remote import in_memory
from test_webdataset import IMAGES, samples, shard

from petriscope.core.errors import DataError, PetriscopeError, RequestError
from petriscope.core.recipe import DataSection, load_recipe
from petriscope.data import cache, streamed
from petriscope.data.batches import Batches
from petriscope.data.imageset import ImageSet
from petriscope.data.sources import list_files
from petriscope.data.streamed import Streamed, windowed
from petriscope.training.build import check_parts
from s3_server import s3_bucket

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(autouse=True)
def empty_memory() -> Iterator[None]:
    yield
    fsspec.filesystem("memory").store.clear()


def many(folder: Path, count: int = 600, each: int = 100) -> Path:
    """Train shards with images of 8 x 9 pixels in two classes."""
    contents = [png(image) for image in some_images(count)]
    for start in range(0, count, each):
        files = {}
        for number in range(start, min(start + each, count)):
            files[f"{number:05d}.png"], files[f"{number:05d}.cls"] = contents[number], b"01"[number % 2 :][:1]
        shard(folder / f"train-{start // each:03d}.tar", files)
    shard(folder / "val-000.tar", {f"v{name}": data for name, data in samples(cls="<number>").items()})
    return folder


@pytest.mark.parametrize("where", ["disk", "address"])
@pytest.mark.parametrize("kind", ["webdataset", "webdataset json", "webdataset txt", "hub", "parquet of images"])
def test_the_same_set_as_without(kind: str, where: str, tmp_path: Path) -> None:
    form = FORMATS[kind]
    for library in form.needs:
        pytest.importorskip(library)
    place = form.write(tmp_path)
    source = in_memory(Path(place), Path(place).name) if where == "address" else place
    options = {**form.options, **({"group": form.group} if form.group else {})}
    plain, stream = load(place, **options), load(source, stream=True, **options)
    assert stream.fingerprint == plain.fingerprint and stream.drawn == plain.drawn
    for name, part in plain.splits.items():
        other = stream.split(name)
        assert isinstance(other.pixels, Streamed) and other.mapped
        assert other.ids.tolist() == part.ids.tolist() and other.digests() == part.digests()
        assert (other.take(np.arange(len(part))[::-1]) == part.take(np.arange(len(part))[::-1])).all()
        assert {key: values.tolist() for key, values in other.columns.items()} == {
            key: values.tolist() for key, values in part.columns.items()
        }
        assert (other.groups is None) == (part.groups is None)
        assert part.groups is None or other.groups.tolist() == part.groups.tolist()
    again = load(source, stream=True, **options)
    assert again.fingerprint == plain.fingerprint and again.warnings == stream.warnings


def test_shards_are_looked_through_once_and_nothing_is_kept_of_their_images(tmp_path: Path, own_cache: Path) -> None:
    folder = many(tmp_path / "set")
    source = in_memory(folder, "set")
    load(source, stream=True)
    assert list_files(source, DataSection(stream=True)) == []  # type: ignore[arg-type]
    assert sum(file.stat().st_size for file in own_cache.rglob("*")) < 200_000 < 12 * 9 * 8 * 3 * 600
    assert not (own_cache / "remote").exists() and not list(own_cache.glob(".*.tmp"))
    opened = []
    system = fsspec.filesystem("memory")
    whole = type(system).open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(system), "open", lambda self, path, *a, **k: opened.append(path) or whole(self, path, *a, **k)
        )
        load(source, stream=True)
        assert opened == []
        system.pipe_file("/set/train-006.tar", (folder / "val-000.tar").read_bytes())
        assert len(load(source, stream=True).split("train")) == 612
        assert {path.rpartition("/")[2] for path in opened} == {"train-006.tar"}


def test_windows() -> None:
    blocks = np.repeat(np.arange(30), 20)
    order = windowed(blocks, 100, seed=1, epoch=0)
    assert sorted(order.tolist()) == list(range(600))
    for start in range(0, 600, 100):
        within = blocks[order[start : start + 100]]
        assert len({*within.tolist()}) == 5  # so many blocks fill a window
        assert len({*within[:20].tolist()}) > 2  # whose images are mixed
    assert (order == windowed(blocks, 100, 1, 0)).all()
    assert not (order == windowed(blocks, 100, 1, 1)).all() and not (order == windowed(blocks, 100, 2, 0)).all()


def test_epochs_of_some_images_follow_one_another() -> None:
    blocks = np.repeat(np.arange(30), 20)
    parts = np.concatenate([windowed(blocks, 100, 3, epoch, 250) for epoch in range(12)])
    whole = np.concatenate([windowed(blocks, 100, 3, epoch) for epoch in range(5)])
    assert (parts == whole).all()
    assert windowed(blocks, 100, 3, 0, 1300).tolist() == [*whole[:1300]]


def train_of(folder: Path, **options: object) -> ImageSet:
    return load(folder, stream=True, **options).split("train")


def test_each_block_is_read_once_and_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "BLOCK_IMAGES", 25)
    monkeypatch.setattr(streamed, "LEAD", 50)
    train = train_of(many(tmp_path / "set"))
    read, whole = Counter[int](), Streamed._bytes_of
    monkeypatch.setattr(
        Streamed, "_bytes_of", lambda self, block, rows: read.update([block]) or whole(self, block, rows)
    )
    order = windowed(train.blocks, 100, 0, 0)
    batches = [order[start : start + 20] for start in range(0, 600, 20)]
    wanted = some_images(600)
    for indices, (images, targets) in zip(batches, Batches(train, torch.device("cpu")).iterate(batches), strict=True):
        numbers = [int(name.partition(".")[0]) for name in train.ids[indices]]
        assert (images.numpy() == wanted[numbers]).all()
        assert targets.tolist() == [number % 2 for number in numbers]
        assert len(read) <= (len([*read]) and 4 + -(-(int(np.flatnonzero(order == indices[-1])[0]) + 150) // 100) * 4)
    assert set(read.values()) == {1} and len(read) == 24
    threads = threading.active_count()
    stream = Batches(train, torch.device("cpu")).iterate(batches)
    next(stream)
    stream.close()
    assert threading.active_count() <= threads


def test_the_memory_is_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "BLOCK_IMAGES", 32)
    monkeypatch.setattr(streamed, "LEAD", 64)
    rng = np.random.default_rng(0)
    noise = [png(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(64)]
    files = {}
    for number in range(1536):
        files[f"{number:05d}.png"], files[f"{number:05d}.cls"] = noise[number % 64], b"01"[number % 2 :][:1]
    train = load(shard(tmp_path / "all.tar", files), stream=True, val_fraction=0, test_fraction=0).train
    assert train is not None
    order = windowed(train.blocks, 64, 0, 0)
    batches = [order[start : start + 32] for start in range(0, len(order), 32)]
    tracemalloc.start()
    for _ in Batches(train, torch.device("cpu")).iterate(batches):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Two windows of files, what is read with them, and some batches: less than half of the files, or of the pixels.
    assert peak < sum(map(len, noise)) * 1536 / 64 / 2 and peak < 1536 * 32 * 32 * 3 / 2


def test_what_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    folder = many(tmp_path / "set", 200)
    train = train_of(folder)
    path = folder / "train-001.tar"
    data = bytearray(path.read_bytes())
    at = int(train.pixels.table.at[150])
    data[at + 40] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"train-001\.tar has changed since training was begun"):
        train.take(np.arange(200))
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"train-001\.tar"):
        train.take(np.arange(200))
    path.unlink()
    with pytest.raises(DataError, match=r"train-001\.tar cannot be read: No such file"):
        train.take(np.arange(200))
    with pytest.raises(DataError, match=r"train-000\.tar claims more than 3,000 bytes"):
        (folder / "train-000.tar").write_bytes((folder / "train-000.tar").read_bytes()[:3000])
        load(folder, stream=True)


def test_damaged_images(tmp_path: Path) -> None:
    files = samples(cls="<number>")
    files["003.png"] = IMAGES[3][:40]
    files["005.png"] = b"no image"
    path = shard(tmp_path / "a.tar", files)
    with pytest.raises(DataError, match=r"2 images cannot be read: 003\.png .*data\.unreadable=skip"):
        load(path, stream=True)
    data, plain = load(path, stream=True, unreadable="skip"), load(path, unreadable="skip")
    assert data.fingerprint == plain.fingerprint and data.warnings == plain.warnings


def test_what_cannot_be_streamed(tmp_path: Path) -> None:
    for source in (make_folders(tmp_path / "folders"), "digits"):
        data = load(source, stream=True)
        assert data.fingerprint == load(source).fingerprint and not data.split("train").mapped
        assert data.warnings[0].startswith("data.stream has no effect, and the images are read as without it: ")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "folders", ".")
    assert "a.tar.gz is compressed as a whole" in load(tmp_path / "a.tar.gz", stream=True).warnings[0]
    with pytest.raises(RequestError, match=r"data\.memory=resident cannot be set beside it"):
        load_recipe("demo", ["data.stream=true", "data.memory=resident"])
    with pytest.raises(RequestError, match=r"sampler: weighted cannot be used beside it"):
        check_parts(load_recipe("demo", ["data.stream.window=100", "sampler=weighted"]))
    assert DataSection(stream=False).stream is None  # type: ignore[arg-type]


def test_sizes_and_channels_are_those_of_the_first(tmp_path: Path) -> None:
    files = samples(cls="<number>")
    files["007.png"] = png(some_images(1, side=12)[0])
    path = shard(tmp_path / "a.tar", files)
    with pytest.raises(DataError, match=r"a\.tar has an image of 12 x 13, .* have 8 x 9; .*data\.size=N"):
        load(path, stream=True)
    assert load(path, stream=True, size=6).fingerprint == load(path, size=6).fingerprint
    gray = {f"{n:03d}.png": png(image[..., 0]) for n, image in enumerate(some_images(40, gray=True))}
    files = {
        name: data
        for n, key in enumerate(gray)
        for name, data in ((key, gray[key]), (key[:3] + ".cls", b"%d" % (n % 2)))
    }
    path = shard(tmp_path / "b.tar", files)
    assert load(path, stream=True).shape == (8, 9, 1)
    files["039.png"] = IMAGES[0]
    path = shard(tmp_path / "c.tar", files)
    with pytest.raises(DataError, match=r"the first images are gray, .*c\.tar has one in color; .*data\.channels=rgb"):
        load(path, stream=True)
    assert load(path, stream=True, channels="rgb").fingerprint == load(path).fingerprint


def test_s3(tmp_path: Path) -> None:
    folder = many(tmp_path / "set", 100, 50)
    with s3_bucket("shards-bucket") as system:
        system.put(f"{folder}/", "shards-bucket/cells/", recursive=True)
        data, plain = load("s3://shards-bucket/cells", stream=True), load(folder)
        assert data.fingerprint == plain.fingerprint
        rows = np.random.default_rng(0).permutation(100)
        assert (data.split("train").take(rows) == plain.split("train").take(rows)).all()
        assert not (cache.cache_dir() / "remote").exists()
        system.rm("shards-bucket/cells/train-001.tar")
        with pytest.raises(PetriscopeError, match=r"train-001\.tar cannot be read"):
            data.split("train").take(rows)
