"""The images of a run are recognized by content in a source whose files were renamed, moved, copied, added or removed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_sources import MAKERS, load, make_folders, make_npz, make_unsplit, save_image, some_images

from petriscope.core.errors import DataError, RequestError
from petriscope.core.recipe import DataSection
from petriscope.data.imageset import ImageSet
from petriscope.data.load import recall_dataset
from petriscope.data.membership import Exposure, Membership
from petriscope.data.recognition import match, membership_of


def image_set(contents: list[int], prefix: str = "", labels: list[int] | None = None) -> ImageSet:
    """An image of one value each."""
    pixels = np.array(contents, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    targets = np.array(labels or [0] * len(contents), dtype=np.int64)
    ids = np.array([f"{prefix}{index}" for index in range(len(contents))])
    return ImageSet(pixels, targets, ("a", "b"), ids)


@given(st.data())
def test_known_images_keep_their_splits_and_order_and_no_image_is_lost(data: st.DataObject) -> None:
    contents = st.lists(st.integers(0, 12), min_size=1, max_size=8)
    splits = {name: image_set(data.draw(contents), f"{name}/") for name in ("train", "val", "test")}
    known = membership_of(splits)
    pool = [(part.images[i, 0, 0, 0], part.ids[i]) for part in splits.values() for i in range(len(part))]
    kept = data.draw(st.permutations(pool))[data.draw(st.integers(0, len(pool))) :]
    now = [(value, data.draw(st.sampled_from([name, f"renamed {name}"]))) for value, name in kept]
    now += [(data.draw(st.integers(0, 20)), f"new {index}") for index in range(data.draw(st.integers(0, 4)))]
    if not now:
        return
    there = image_set([int(value) for value, _ in now])
    object.__setattr__(there, "ids", np.array([name for _, name in now]))
    cut = data.draw(st.integers(0, len(now)))
    parts = {"a": there.subset(np.arange(cut)), "b": there.subset(np.arange(cut, len(now)))}
    found, rest, change = match(known, {name: part for name, part in parts.items() if len(part)})

    assert sum(map(len, found.values())) + sum(map(len, rest.values())) == len(now)
    assert sum(map(len, found.values())) + len(change.gone) + len(change.changed) == len(known.ids)
    for name, part in found.items():
        had = iter(splits[name].digests())
        assert all(digest in had for digest in part.digests()), "not in the split or the order of the run"
    for part in rest.values():  # what is taken for new is not missing elsewhere
        for digest in part.digests():
            assert sum(each.digests().count(digest) for each in found.values()) == known.digests.count(digest)


@pytest.mark.parametrize("now", [None, list("xyzxyz"), list("ppqqrr"), list("aabbab")])
def test_images_keep_the_groups_of_the_run(now: list[str] | None, capsys: pytest.CaptureFixture[str]) -> None:
    """Or else intervals and guarantees would take the images of a group as independent, without a word."""
    had = list("aabbcc")
    before = replace(image_set(list(range(6))), groups=np.array(had))
    there = replace(image_set(list(range(6))), groups=None if now is None else np.array(now))
    found, _, change = match(membership_of({"train": before}), {"train": there})
    assert found["train"].groups is not None and found["train"].groups.tolist() == had and not str(change)
    told = "the source puts images into other groups than the run had" in capsys.readouterr().err
    assert told == (now is not None and now != list("ppqqrr")), "other names of the same groups are no news"


@pytest.mark.parametrize("kind", MAKERS)
def test_every_kind_of_source_is_recalled_as_it_was_loaded(kind: str, tmp_path: Path) -> None:
    source = MAKERS[kind](tmp_path / "data")
    before = load(source)
    assert before.membership is not None
    before.membership.write(tmp_path / "splits.parquet")
    known = Membership.read(tmp_path / "splits.parquet")
    place = tmp_path / "elsewhere" / "of another name"
    shutil.copytree(tmp_path / "data", place)
    moved = place if source.is_dir() else place / source.name
    now, change = recall_dataset(DataSection(source=str(moved)), known, before.classes)
    assert now.fingerprint == before.fingerprint and not str(change)
    assert {name: part.ids.tolist() for name, part in now.splits.items()} == {
        name: part.ids.tolist() for name, part in before.splits.items()
    }


def recalled(folder: Path, before) -> tuple:
    return recall_dataset(DataSection(source=str(folder)), before.membership, before.classes)


def test_renamed_files_are_the_same_data(tmp_path: Path) -> None:
    folder = make_unsplit(tmp_path / "data")
    before = load(folder)
    for number, path in enumerate(sorted(folder.rglob("*.png"), reverse=True)):
        path.rename(path.with_name(f"{number:04d}.png"))
    now, change = recalled(folder, before)
    assert now.fingerprint == before.fingerprint != load(folder).fingerprint and not str(change)


def test_a_grown_source_is_the_same_data_and_what_is_new_is_named(tmp_path: Path) -> None:
    folder = make_unsplit(tmp_path / "data")
    before = load(folder)
    for number, pixels in enumerate(some_images(3, seed=9)):
        save_image(folder / "cat" / f"0{number}.png", pixels)
    save_image(folder / "aardvark" / "0.png", some_images(1, seed=10)[0])  # shifts the number of every class
    now, change = recalled(folder, before)
    assert now.fingerprint == before.fingerprint and now.classes == before.classes
    assert str(change) == "4 images are new (the first: aardvark/0.png)"


def test_what_has_changed_is_counted_and_named(tmp_path: Path) -> None:
    folder = make_folders(tmp_path / "data")
    before = load(folder)
    (folder / "train/cat/train_00.png").unlink()
    (folder / "train/cat/train_02.png").unlink()
    save_image(folder / "val/cat/val_00.png", some_images(1, seed=9)[0])
    (folder / "test/cat/test_00.png").rename(folder / "test/dog/test_00.png")
    now, change = recalled(folder, before)
    assert now.fingerprint != before.fingerprint
    assert str(change) == (
        "1 image has changed (val/cat/val_00.png), 1 image has another label or mask (test/cat/test_00.png), "
        "2 images are gone (the first: train/cat/train_00.png)"
    )
    assert {name: len(part) for name, part in now.splits.items()} == {"train": 10, "val": 3, "test": 4}


def test_an_image_that_was_moved_to_another_split_stays_in_its_own(tmp_path: Path) -> None:
    path = make_npz(tmp_path)
    before = load(path)
    with np.load(path) as kept:
        arrays = dict(kept)
    for name in ("images", "labels"):  # two of train move to the front of test
        train, test = arrays[f"train_{name}"], arrays[f"test_{name}"]
        arrays[f"train_{name}"], arrays[f"test_{name}"] = train[2:], np.concatenate([train[:2], test])
    np.savez(path, **arrays)
    now, change = recalled(path, before)
    assert now.fingerprint == before.fingerprint and not str(change)


def test_nothing_known_is_an_error(tmp_path: Path) -> None:
    before = load(make_unsplit(tmp_path / "data"))
    with pytest.raises(DataError, match="none of the 20 images"):
        recalled(make_unsplit(tmp_path / "other", seed=7), before)


def test_names_that_are_not_utf_8_are_written(tmp_path: Path) -> None:
    part = image_set([1, 2])
    object.__setattr__(part, "ids", np.array(["a\udce9.png", "b.png"]))
    membership_of({"test": part}).write(tmp_path / "splits.parquet")
    assert Membership.read(tmp_path / "splits.parquet").digests == part.digests()


@given(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9)))
def test_an_image_in_train_and_val_counts_as_train(train: list[int], val: list[int], asked: list[int]) -> None:
    def digests(contents: list[int]) -> frozenset[bytes]:
        return frozenset(image_set(contents).digests())

    exposure = Exposure(digests(train), digests(val))
    assert Exposure.from_arrays(exposure.arrays()) == exposure
    roles = exposure.roles(image_set(asked).digests()).tolist()
    assert roles == ["train" if each in train else "val" if each in val else "" for each in asked]


def test_a_record_of_many_images_is_compact(tmp_path: Path) -> None:
    count = 20_000
    digests = [row.tobytes() for row in np.random.default_rng(0).integers(0, 256, (count, 16), dtype=np.uint8)]
    ids = np.array([f"class {index % 5}/scan_{index:06d}.png" for index in range(count)])
    known = Membership(
        np.array(["train"] * count), ids, digests, np.array(["a"] * count), None, np.ones(count, dtype=bool)
    )
    known.write(tmp_path / "splits.parquet")
    assert (tmp_path / "splits.parquet").stat().st_size < 40 * count
    assert Membership.read(tmp_path / "splits.parquet").digests == digests


class TestGrown:
    """A data set that has grown, loaded with the splits of an earlier run."""

    @pytest.fixture(params=["pile", "folders", "mask pile", "mask folders"])
    def before(self, request, tmp_path: Path):
        folder = tmp_path / "data"
        source = MAKERS[request.param](folder)
        before = load(source)
        (tmp_path / "run").mkdir()
        before.membership.write(tmp_path / "run" / "splits.parquet")
        return source, before, tmp_path / "run"

    def grow(self, source: Path, count: int) -> None:
        """Double the images, with other pixels."""
        rng = np.random.default_rng(1)
        files = [path for path in sorted(source.rglob("*.png")) if "masks" not in path.parts]
        for path in files[:count]:
            twin = path.with_name(f"0{path.name}")
            save_image(twin, rng.integers(0, 256, (8, 9, 3), dtype=np.uint8))
            if "images" in path.parts:
                mask = Path(str(path).replace("/images/", "/masks/"))
                shutil.copy(mask, mask.with_name(f"0{mask.name}"))

    def test_known_images_stay_and_new_ones_are_drawn(self, before) -> None:
        source, old, run = before
        self.grow(source, 12)
        now = load(source, splits=run)
        for name, part in old.splits.items():
            assert set(part.digests()) <= set(now.splits[name].digests())
        assert sum(map(len, now.splits.values())) == 32
        assert any("12 images are new" in warning for warning in now.warnings)
        assert load(source, splits=run).fingerprint == now.fingerprint

    def test_without_growth_nothing_changes(self, before) -> None:
        source, old, run = before
        now = load(source, splits=run)
        assert now.fingerprint == old.fingerprint and now.warnings == old.warnings

    def test_copies_and_changed_images_stay_with_the_originals(self, tmp_path: Path) -> None:
        folder = make_unsplit(tmp_path / "data")
        old = load(folder)
        (tmp_path / "run").mkdir()
        old.membership.write(tmp_path / "run" / "splits.parquet")
        test = [folder / name for name in old.split("test").ids]
        shutil.copy(test[0], test[0].with_name("copy.png"))
        save_image(test[1], some_images(1, seed=3)[0])
        now = load(folder, splits=tmp_path / "run")
        assert len(now.split("test")) == len(old.split("test")) + 1

    def test_images_of_a_known_group_go_to_its_split(self, tmp_path: Path) -> None:
        for number, pixels in enumerate(some_images(48)):
            save_image(tmp_path / "data" / f"c{number % 2}" / f"slide{number // 4}_{number}.png", pixels)
        group = r"(slide\d+)_"
        old = load(tmp_path / "data", group=group, val_fraction=0.2, test_fraction=0.2)
        (tmp_path / "run").mkdir()
        old.membership.write(tmp_path / "run" / "splits.parquet")
        for number, pixels in enumerate(some_images(24, seed=4)):
            save_image(tmp_path / "data" / f"c{number % 2}" / f"slide{number // 2}_new{number}.png", pixels)
        now = load(tmp_path / "data", group=group, splits=tmp_path / "run")
        assert not [warning for warning in now.warnings if "groups" in warning]
        assert {name: set(part.groups) for name, part in now.splits.items()} == {
            name: set(part.groups) for name, part in old.splits.items()
        }

    def test_no_record_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match=r"data\.splits: no splits at"):
            load(make_npz(tmp_path), splits=tmp_path)
        (tmp_path / "splits.parquet").write_bytes(b"nothing")
        with pytest.raises(RequestError, match="damaged"):
            load(make_npz(tmp_path), splits=tmp_path)
