"""Splits that are drawn, checks across splits, and what the user is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_sources import load, make_folders, make_mask_npz, make_npz, save_image, some_images, write_table

from petriscope.core.errors import DataError, RequestError

NO_VAL = {"val_images": None, "val_labels": None}
NO_TEST = {"test_images": None, "test_labels": None}
NO_TRAIN = {"train_images": None, "train_labels": None}


def sizes(data: object) -> dict[str, int]:
    return {name: len(part) for name, part in data.splits.items()}  # type: ignore[attr-defined]


def test_no_source() -> None:
    from petriscope.core.recipe import DataSection
    from petriscope.data import load_dataset

    with pytest.raises(RequestError, match="--data"):
        load_dataset(DataSection())


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("bloodmnits", "did you mean bloodmnist"),
        ("/no/such/thing", "no data source"),
        ("synthetic-smear:many", "1 to 10,000,000"),
        ("synthetic-smear:0", "1 to 10,000,000"),
        ("synthetic-smear:", "1 to 10,000,000"),
    ],
)
def test_a_wrong_source(source: str, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        load(source)


def test_a_wrong_path_names_what_lies_beside(tmp_path: Path) -> None:
    make_npz(tmp_path)
    with pytest.raises(RequestError, match=r"did you mean .*cells\.npz"):
        load(tmp_path / "cels.npz")
    (tmp_path / "x.doc").write_text("hello")
    with pytest.raises(RequestError, match="unknown kind"):
        load(tmp_path / "x.doc")


def test_a_split_source_keeps_its_splits(tmp_path: Path) -> None:
    assert sizes(load(make_npz(tmp_path))) == {"train": 12, "val": 4, "test": 4}


def test_val_is_drawn_from_train(tmp_path: Path) -> None:
    path = make_npz(tmp_path, **NO_VAL)
    assert sizes(load(path, val_fraction=0.25)) == {"train": 9, "val": 3, "test": 4}
    assert sizes(load(path, val_fraction=0)) == {"train": 12, "test": 4}


def test_a_missing_test_split_stays_missing(tmp_path: Path) -> None:
    data = load(make_npz(tmp_path, **NO_TEST))
    assert sizes(data) == {"train": 12, "val": 4}
    with pytest.raises(DataError, match="no test split"):
        data.split("test")


def test_train_alone_is_a_pile(tmp_path: Path) -> None:
    data = load(make_npz(tmp_path, **NO_VAL, **NO_TEST), val_fraction=0.25, test_fraction=0.25)
    assert sizes(data) == {"train": 6, "val": 3, "test": 3}
    assert data.split("val").ids[0].startswith("train/")


def test_test_alone_is_allowed(tmp_path: Path) -> None:
    path = make_npz(tmp_path, **NO_VAL, **NO_TRAIN)
    assert sizes(load(path)) == {"test": 4}
    assert load(path, classes=("a", "b", "c")).classes == ("a", "b", "c")


def test_fractions_that_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nothing is left"):
        load("digits", val_fraction=0.5, test_fraction=0.6)


def test_another_split_seed_is_another_split() -> None:
    one, same, other = (load("digits", split_seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(one.split("val").ids, same.split("val").ids)
    assert not np.array_equal(one.split("val").ids, other.split("val").ids)


def test_one_class(tmp_path: Path) -> None:
    labels = {f"{split}_labels": np.zeros(count, int) for split, count in (("train", 12), ("val", 4), ("test", 4))}
    with pytest.raises(DataError, match="only one class"):
        load(make_npz(tmp_path, **labels))


def test_a_class_without_training_images(tmp_path: Path) -> None:
    path = make_npz(tmp_path, test_labels=np.array([0, 1, 2, 1]), classes=np.array(["cat", "dog", "emu"]))
    with pytest.raises(DataError, match="no training images of the class emu"):
        load(path)
    path = make_npz(tmp_path, **{f"{split}_labels": 1 + np.arange(n) % 2 for split, n in (("train", 12), ("val", 4))})
    with pytest.raises(DataError, match=r"class 0.*count from 0"):
        load(path)


def test_a_class_that_train_lacks(tmp_path: Path) -> None:
    make_folders(tmp_path / "data")
    save_image(tmp_path / "data/test/dgo/x.png", some_images(1)[0])
    with pytest.raises(DataError, match=r"test has the class dgo, which train lacks; did you mean dog"):
        load(tmp_path / "data")


def test_fewer_classes_in_val_are_mapped_by_name(tmp_path: Path) -> None:
    make_folders(tmp_path / "data")
    for path in (tmp_path / "data/val/cat").iterdir():
        path.unlink()
    (tmp_path / "data/val/cat").rmdir()
    data = load(tmp_path / "data")
    assert data.classes == ("cat", "dog") and set(data.split("val").targets) == {1}


def test_shapes_that_differ_between_splits(tmp_path: Path) -> None:
    path = make_npz(tmp_path, test_images=some_images(4, side=6))
    with pytest.raises(DataError, match=r"train 8 x 9.*test 6 x 7.*data\.size"):
        load(path)
    assert load(path, size=6).shape == (6, 6, 3)


def test_gray_and_color_splits_become_color(tmp_path: Path) -> None:
    assert load(make_npz(tmp_path, test_images=some_images(4, gray=True))).shape == (8, 9, 3)


def test_leaks_are_counted(tmp_path: Path) -> None:
    path = make_npz(tmp_path, test_images=some_images(12, seed=0)[:4], val_images=np.stack([some_images(12)[0]] * 4))
    warnings = load(path).warnings
    assert "4 images of test are in train too; metrics on test will be too optimistic" in warnings
    assert any(text.startswith("4 images of val are in train") for text in warnings)
    assert not load(make_npz(tmp_path)).warnings


def test_names_for_numbers(tmp_path: Path) -> None:
    path = make_npz(tmp_path)
    assert load(path).classes == ("0", "1")
    assert load(path, classes=("cat", "dog")).classes == ("cat", "dog")
    for wrong in (("cat",), ("cat", "dog", "emu")):
        with pytest.raises(RequestError, match="need 2"):
            load(path, classes=wrong)
    with pytest.raises(RequestError, match="twice"):
        load(path, classes=("cat", "cat"))


def test_classes_of_a_source_with_names_set_their_order(tmp_path: Path) -> None:
    make_folders(tmp_path / "data")
    one, two = load(tmp_path / "data"), load(tmp_path / "data", classes=("dog", "cat"))
    assert two.classes == ("dog", "cat")
    assert np.array_equal(one.split("val").targets, 1 - two.split("val").targets)
    with pytest.raises(RequestError, match="did you mean dogs"):
        load(tmp_path / "data", classes=("cat", "dogs"))


def test_groups_stay_whole(tmp_path: Path) -> None:
    for number, pixels in enumerate(some_images(40)):
        save_image(tmp_path / "data" / f"c{number % 2}" / f"slide{number // 4}_{number}.png", pixels)
    data = load(tmp_path / "data", group=r"(slide\d+)_", val_fraction=0.2, test_fraction=0.2)
    owners = [set(part.groups) for part in data.splits.values() if part.groups is not None]
    assert len(owners) == 3 and sum(map(len, owners)) == len(set().union(*owners)) == 10
    with pytest.raises(DataError, match=r"matches nothing in c0/slide0_0\.png"):
        load(tmp_path / "data", group="plate")


@pytest.mark.parametrize(("other", "said"), [("S1", True), ("s01", False), ("t1", False)])
def test_groups_written_in_two_ways_are_said(other: str, said: bool, tmp_path: Path) -> None:
    for number, pixels in enumerate(some_images(24)):
        save_image(tmp_path / "data" / f"c{number % 2}" / f"{('s1', 's2', other)[number // 8]}_{number}.png", pixels)
    data = load(tmp_path / "data", group="^(.+?)_", val_fraction=0.2, test_fraction=0.2)
    assert any("are two, so they may be in different splits" in text for text in data.warnings) == said


def test_groups_of_an_npz(tmp_path: Path) -> None:
    groups = {f"{split}_groups": np.arange(n) // 2 for split, n in (("train", 12), ("val", 4), ("test", 4))}
    data = load(make_npz(tmp_path, **groups))
    assert data.split("train").groups is not None
    assert "2 groups are both in train and in test; metrics on test will be too optimistic" in data.warnings
    with pytest.raises(RequestError, match="no groups"):
        load("digits", group="x")


def test_groups_of_a_table(tmp_path: Path) -> None:
    rows = []
    for number, pixels in enumerate(some_images(24)):
        save_image(tmp_path / f"{number}.png", pixels)
        rows.append({"path": f"{number}.png", "label": number % 2, "group": f"g{number // 4}", "plate": number // 12})
    path = write_table(tmp_path / "t.csv", rows)
    assert set(load(path).split("train").groups) <= {f"g{i}" for i in range(6)}  # type: ignore[arg-type]
    assert set(load(path, group="plate", val_fraction=0).split("train").groups) <= {"0", "1"}  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="did you mean plate"):
        load(path, group="plates")


def test_too_few_images_for_a_split(tmp_path: Path) -> None:
    for number, pixels in enumerate(some_images(2)):
        save_image(tmp_path / "data" / f"c{number}" / "x.png", pixels)
    data = load(tmp_path / "data")
    assert sizes(data) == {"train": 2}


@pytest.mark.parametrize("scale", [1 / 255, 0])
def test_a_split_on_another_scale_is_said(scale: float, tmp_path: Path) -> None:
    images, labels = some_images(12) / 255, np.arange(12) % 2
    arrays = {"train_images": images, "train_labels": labels, "test_images": images * scale, "test_labels": labels}
    np.savez(tmp_path / "cells.npz", **arrays)
    said = [text for text in load(tmp_path / "cells.npz").warnings if "on one scale" in text]
    assert (
        len(said) == 1
        and "the images of test are nearly black" in said[0]
        and "those of train and val are not" in said[0]
    )
    np.savez(tmp_path / "cells.npz", train_images=images, train_labels=labels)
    assert not any("on one scale" in text for text in load(tmp_path / "cells.npz").warnings)


def test_equal_images_of_two_classes_are_said(tmp_path: Path) -> None:
    images = some_images(12)
    images[7] = images[2]
    labels = np.arange(12) % 2
    np.savez(tmp_path / "cells.npz", train_images=images, train_labels=labels)
    said = [text for text in load(tmp_path / "cells.npz").warnings if "pixel for pixel" in text]
    assert len(said) == 1 and said[0].startswith("2 images are equal, pixel for pixel, to some of another class")
    assert "train/2 (0) and train/7 (1)" in said[0] or "train/7 (1) and train/2 (0)" in said[0]
    np.savez(tmp_path / "cells.npz", train_images=images, train_labels=np.where(np.arange(12) == 7, 0, labels))
    assert not any("of another class" in text for text in load(tmp_path / "cells.npz").warnings)


def test_options_that_have_no_effect_are_said(tmp_path: Path) -> None:
    make_folders(tmp_path / "s")
    data = load(
        tmp_path / "s", val_fraction=0.4, test_fraction=0.15, ignore=0, mask_values=(0, 1), layout="channels-last"
    )
    said = [text.split(" has no effect: ")[0] for text in data.warnings if " has no effect: " in text]
    assert sorted(said) == ["data.ignore", "data.layout", "data.mask_values", "data.val_fraction"]
    make_npz(tmp_path, **NO_VAL)
    data = load(tmp_path / "cells.npz", val_fraction=0.4, test_fraction=0.4)
    assert [text for text in data.warnings if "has no effect" in text] == [
        f"data.test_fraction has no effect: {tmp_path / 'cells.npz'} has its own test split"
    ]
    folded = load(tmp_path / "s", val_fraction=0.4, folds={"count": 2, "hold_out": 1})  # which draws val anew
    assert not any("has no effect" in text for text in folded.warnings)


def test_drawn_splits_share_no_images(tmp_path: Path) -> None:
    images = np.tile(some_images(60), (2, 1, 1, 1))
    np.savez(tmp_path / "twice.npz", train_images=images, train_labels=np.arange(120) % 2)
    found = load(tmp_path / "twice.npz")
    digests = [set(part.digests()) for part in found.splits.values()]
    assert len(digests) == 3 and sum(map(len, digests)) == 60
    assert not any("too optimistic" in text for text in found.warnings)


def test_copies_within_a_split_are_said(tmp_path: Path) -> None:
    make_folders(tmp_path / "s")
    assert not any("copies of others" in text or "copy of another" in text for text in load(tmp_path / "s").warnings)
    first = sorted((tmp_path / "s/test/cat").iterdir())[0]
    (first.parent / "zz.png").write_bytes(first.read_bytes())
    assert [
        text
        for text in load(tmp_path / "s").warnings
        if "1 image of test is a copy of another in it" in text and "zz.png" in text
    ]
    for number in range(3):
        (first.parent / f"zz{number}.png").write_bytes(first.read_bytes())
    assert [text for text in load(tmp_path / "s").warnings if "4 images of test are copies of others in it" in text]
    (tmp_path / "s/train/cat/zz.png").write_bytes(sorted((tmp_path / "s/train/cat").iterdir())[0].read_bytes())
    assert not any("of train" in text and "cop" in text for text in load(tmp_path / "s").warnings)


def test_a_class_that_val_lacks_is_said(tmp_path: Path) -> None:
    labels = np.array([0, 1, 2] * 4)[:, None].astype(np.uint8)
    path = make_npz(tmp_path, train_images=some_images(12), train_labels=labels)
    (said,) = [text for text in load(path).warnings if text.startswith("val has no")]
    assert said.startswith("val has no images of 2, so its metrics, and what is fitted on it")
    assert not any(text.startswith("val has no") for text in load(make_npz(tmp_path / "b")).warnings)


def test_options_that_arrays_with_splits_have_no_use_for_are_said(tmp_path: Path) -> None:
    path = make_npz(tmp_path)
    said = load(path, split_seed=7, pages="images").warnings
    assert f"data.split_seed has no effect: {path} has its own splits" in said
    assert f"data.pages has no effect: {path} has arrays, no files with pages" in said
    without = make_npz(tmp_path / "b", test_images=None, test_labels=None, val_images=None, val_labels=None)
    assert not any("no effect" in text for text in load(without, split_seed=7).warnings)


@pytest.mark.parametrize(
    ("task", "make", "has"), [("classification", make_mask_npz, "masks"), ("segmentation", make_npz, "labels")]
)
def test_a_task_that_the_source_is_not_for_is_refused_in_words(task, make, has, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=rf"data\.task is {task}, but .* was read with {has} as targets"):
        load(make(tmp_path), task=task)
