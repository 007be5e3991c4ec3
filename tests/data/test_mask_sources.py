"""Masks: what their values mean, that they stay with their images, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_sources import (
    COUNTS,
    MASK_MAKERS,
    load,
    make_mars,
    make_mask_folders,
    make_mask_npz,
    make_npz,
    masks,
    save_mask,
    some_images,
)

from petriscope.core.errors import DataError, RequestError
from petriscope.core.masks import IGNORE
from petriscope.core.recipe import DataSection
from petriscope.data import ImageSet
from petriscope.data.aligned import load_aligned
from petriscope.data.sampler import epoch_order
from petriscope.tasks import find_task

NAMES = np.array(["background", "sand", "rock"])


def small_set(targets: np.ndarray, classes: int = 3) -> ImageSet:
    names = tuple("abcdefg"[:classes])
    return ImageSet(some_images(len(targets)), targets, names, np.arange(len(targets)).astype(str))


def test_npz_masks_are_read_as_they_are(tmp_path: Path) -> None:
    data = load(make_mask_npz(tmp_path))
    assert data.classes == ("0", "1", "2")
    for index, split in enumerate(COUNTS):
        assert np.array_equal(data.split(split).targets, masks(COUNTS[split], index))


@pytest.mark.parametrize("make", [lambda m: m[..., None], lambda m: m[:, None], lambda m: m.astype(np.int32)])
def test_masks_may_come_in_other_forms(make: Callable[[np.ndarray], np.ndarray], tmp_path: Path) -> None:
    plain = load(make_mask_npz(tmp_path / "a"))
    other = load(make_mask_npz(tmp_path / "b", train_masks=make(masks(COUNTS["train"], 0))))
    assert other.fingerprint == plain.fingerprint


def test_folders_and_npz_of_the_same_masks_agree(tmp_path: Path) -> None:
    one, other = load(make_mask_npz(tmp_path / "a")), load(make_mask_folders(tmp_path / "b"))
    for split in COUNTS:
        assert np.array_equal(one.split(split).targets, other.split(split).targets)
        assert np.array_equal(one.split(split).images, other.split(split).images)


@pytest.mark.parametrize("ignore", ["background", 0])
def test_an_ignored_class_leaves_the_classes_and_the_others_move_up(ignore: str | int, tmp_path: Path) -> None:
    source = make_mask_npz(tmp_path, classes=NAMES)
    whole, data = load(source), load(source, ignore=ignore)
    assert whole.classes == tuple(NAMES) and data.classes == ("sand", "rock")
    before, after = whole.split("train").targets, data.split("train").targets
    assert np.array_equal(after == IGNORE, (before == 0) | (before == IGNORE))
    assert np.array_equal(after == 0, before == 1) and np.array_equal(after == 1, before == 2)
    assert data.fingerprint != whole.fingerprint


def test_background_is_zero_where_values_have_no_names(tmp_path: Path) -> None:
    assert load(make_mask_npz(tmp_path), ignore="background").classes == ("1", "2")


def test_names_may_be_given_and_put_in_order(tmp_path: Path) -> None:
    source = make_mask_npz(tmp_path, classes=NAMES)
    given = load(make_mask_npz(tmp_path / "b"), classes=("x", "y", "z"), ignore="y")
    assert given.classes == ("x", "z")
    turned = load(source, classes=("rock", "background", "sand"))
    table = np.array([1, 2, 0, *[IGNORE] * 253], dtype=np.uint8)
    assert np.array_equal(turned.split("val").targets, table[load(source).split("val").targets])


def test_masks_are_resized_to_the_nearest(tmp_path: Path) -> None:
    whole, half = load(make_mask_npz(tmp_path)), load(make_mask_npz(tmp_path / "b"), size=(16, 18))
    doubled = whole.split("train").targets.repeat(2, axis=1).repeat(2, axis=2)
    assert np.array_equal(half.split("train").targets, doubled)


class TestMars:
    def test_classes_ids_and_blocks(self, tmp_path: Path) -> None:
        data = load(make_mars(tmp_path, count=120), ignore="background")
        assert data.classes == ("soil", "bedrock", "sand", "big rock")
        assert set(np.concatenate([part.ids for part in data.splits.values()])) == {f"crop{i}" for i in range(120)}

    def test_no_block_is_in_two_splits(self, tmp_path: Path) -> None:
        data = load(make_mars(tmp_path, count=120), block=10)
        seen: set[str] = set()
        for part in data.splits.values():
            assert part.groups is not None
            numbers = np.char.replace(part.ids, "crop", "").astype(int)
            assert np.array_equal(part.groups, [f"block {number // 10}" for number in numbers])
            assert not seen & set(part.groups)
            seen |= set(part.groups)
        assert len(seen) == 12

    def test_images_without_masks_are_left_out_and_said(self, tmp_path: Path) -> None:
        source = make_mars(tmp_path, test_set=np.zeros((3, 8, 9), dtype=np.uint8))
        assert any("test_set" in warning for warning in load(source).warnings)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"training_set": np.zeros((4, 3, 8, 9), dtype=np.uint8)}, "image and its mask"),
            ({"training_set": np.zeros((4, 2, 8, 9))}, "uint8"),
            ({"training_names": np.array(["x"])}, "training_names"),
        ],
    )
    def test_another_layout_is_refused(self, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=message):
            load(make_mars(tmp_path, **changes))

    def test_a_value_beyond_the_classes_is_refused(self, tmp_path: Path) -> None:
        pairs = np.zeros((4, 2, 8, 9), dtype=np.uint8)
        pairs[2, 1, 3, 3] = 7
        with pytest.raises(DataError, match="image 2 has the value 7"):
            load(make_mars(tmp_path, training_set=pairs, training_names=None))


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"val_masks": masks(4, side=7)}, "height and width"),
            ({"val_masks": masks(4).astype(np.float32)}, "whole numbers"),
            ({"val_masks": masks(4).astype(np.int16) - 1}, "from -1"),
            ({"val_masks": masks(4).astype(np.int16) * 2}, "0, 2, 4, 510"),
            ({"val_masks": masks(3)}, "must agree"),
            ({"val_masks": None}, "no val_masks"),
            ({"val_masks": np.full((4, 8, 9), 200, dtype=np.uint8), "classes": NAMES}, "value 200"),
            ({"val_labels": np.zeros(4, dtype=np.int64)}, "labels and masks"),
        ],
    )
    def test_an_npz(self, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
        arrays = {"val_labels": None, **changes}
        source = make_mask_npz(tmp_path)
        with np.load(source) as stored:
            kept = {name: stored[name] for name in stored.files}
        kept |= arrays
        np.savez(source, **{name: array for name, array in kept.items() if array is not None})
        with pytest.raises(DataError, match=message):
            load(source)

    @pytest.mark.parametrize("ignore", ["rocks", 7])
    def test_a_class_to_ignore_that_is_not_there(self, ignore: str | int, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match=r"data\.ignore"):
            load(make_mask_npz(tmp_path, classes=NAMES), ignore=ignore)

    def test_masks_without_any_label(self, tmp_path: Path) -> None:
        empty = {f"{split}_masks": np.full((count, 8, 9), IGNORE, np.uint8) for split, count in COUNTS.items()}
        with pytest.raises(DataError, match="no labeled pixel"):
            load(make_npz(tmp_path, **{f"{split}_labels": None for split in COUNTS}, **empty))

    def test_a_image_without_a_mask(self, tmp_path: Path) -> None:
        make_mask_folders(tmp_path)
        (tmp_path / "val" / "masks" / "val_01.png").unlink()
        with pytest.raises(DataError, match=r"val_01\.png has no mask"):
            load(tmp_path)

    def test_a_mask_without_a_image(self, tmp_path: Path) -> None:
        make_mask_folders(tmp_path)
        (tmp_path / "val" / "images" / "val_01.png").unlink()
        with pytest.raises(DataError, match=r"val_01\.png has no image"):
            load(tmp_path)

    def test_a_mask_of_another_size_than_its_image(self, tmp_path: Path) -> None:
        make_mask_folders(tmp_path)
        save_mask(tmp_path / "val" / "masks" / "val_01.png", masks(1, side=6)[0])
        with pytest.raises(DataError, match=r"val_01\.png is 6 x 7 and its image 8 x 9"):
            load(tmp_path, size=8)

    def test_a_mask_in_color(self, tmp_path: Path) -> None:
        make_mask_folders(tmp_path)
        Image.fromarray(some_images(1)[0]).save(tmp_path / "val" / "masks" / "val_01.png")
        with pytest.raises(DataError, match="class number per pixel"):
            load(tmp_path)

    def test_a_mask_that_lost_its_numbers(self, tmp_path: Path) -> None:
        make_mask_folders(tmp_path)
        mask = tmp_path / "val" / "masks" / "val_01.png"
        Image.fromarray(masks(1)[0]).save(mask.with_suffix(".jpg"))
        mask.unlink()
        with pytest.raises(DataError, match="save masks as PNG"):
            load(tmp_path)

    def test_a_damaged_mask(self, tmp_path: Path) -> None:
        make_mask_folders(tmp_path)
        (tmp_path / "val" / "masks" / "val_01.png").write_bytes(b"\x89PNG")
        with pytest.raises(DataError, match=r"val_01\.png cannot be read"):
            load(tmp_path)

    def test_masks_that_are_no_masks(self) -> None:
        with pytest.raises(DataError, match="value 3"):
            small_set(np.full((2, 8, 9), 3, dtype=np.uint8))
        with pytest.raises(DataError, match="as the images are"):
            small_set(np.zeros((2, 9, 8), dtype=np.uint8))
        with pytest.raises(DataError, match="uint8"):
            small_set(np.zeros((2, 8, 9), dtype=np.int64))


def test_classes_may_be_named_in_a_file(tmp_path: Path) -> None:
    make_mask_folders(tmp_path)
    (tmp_path / "classes.txt").write_text("soil\nsand\nrock\n")
    assert load(tmp_path).classes == ("soil", "sand", "rock")


def test_a_subset_takes_its_masks_along() -> None:
    images = small_set(masks(6))
    part = images.subset(np.array([4, 1]))
    assert np.array_equal(part.targets, images.targets[[4, 1]]) and part.task.name == "segmentation"
    assert np.array_equal(part.images, images.images[[4, 1]])


def test_a_image_counts_as_its_rarest_class() -> None:
    targets = np.zeros((4, 8, 9), dtype=np.uint8)
    targets[1, 0, :5] = 1
    targets[2, 0, 0], targets[2, 1] = 2, 1
    targets[3] = IGNORE
    assert small_set(targets).strata.tolist() == [0, 1, 2, 0]


def test_oversampling_shows_rare_classes_more_often() -> None:
    targets = np.zeros((40, 8, 9), dtype=np.uint8)
    targets[:4, 0, 0], targets[4:, 1, 1] = 2, 1
    strata = small_set(targets).strata
    order = epoch_order(strata, "oversample", seed=0, epoch=0)
    assert (order < 4).sum() == 36
    assert np.isin(np.arange(40), order).all()


@pytest.mark.parametrize("kind", [kind for kind in MASK_MAKERS if kind != "mars"])
def test_consecutive_images_stay_together_where_blocks_are_asked_for(kind: str, tmp_path: Path) -> None:
    data = load(MASK_MAKERS[kind](tmp_path / "data"), block=4)
    sizes = [np.unique(part.groups, return_counts=True)[1] for part in data.splits.values()]
    assert all((size <= 4).all() for size in sizes) and sum(map(len, sizes)) == 5
    assert not any("group" in warning for warning in data.warnings)


def test_blocks_and_groups_exclude_one_another(tmp_path: Path) -> None:
    groups = {f"{split}_groups": np.array([str(i % 3) for i in range(count)]) for split, count in COUNTS.items()}
    with pytest.raises(RequestError, match=r"data\.block"):
        load(make_mask_npz(tmp_path, **groups), block=4)


def test_masks_of_one_class_can_be_left_out_of_train(tmp_path: Path) -> None:
    train = masks(COUNTS["train"])
    train[3], train[7] = 1, IGNORE
    source = make_mask_npz(tmp_path, train_masks=train)
    data = load(source, drop_single_class=True)
    assert "train/3" not in data.split("train").ids and "train/7" not in data.split("train").ids
    assert len(data.split("train")) == COUNTS["train"] - 2
    assert any(warning.startswith("2 of 12 training images") for warning in data.warnings)
    assert len(load(source).split("train")) == COUNTS["train"]


def test_leaving_out_single_classes_is_about_masks(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="about masks"):
        load(make_npz(tmp_path), drop_single_class=True)


def test_splits_without_groups_keep_the_rare_classes_shares() -> None:
    from petriscope.data.load import UNSPLIT, _draw

    targets = np.zeros((100, 8, 9), dtype=np.uint8)
    targets[::5, 0, 0], targets[5:, 1, 1] = 2, 1
    drawn, _ = _draw({UNSPLIT: small_set(targets)}, DataSection(source="x"), [])
    assert {name: int((part.strata == 2).sum()) for name, part in drawn.items()} == {"train": 14, "val": 3, "test": 3}


CLASSIFICATION, SEGMENTATION = find_task("classification"), find_task("segmentation")


class TestAligned:
    """Masks from elsewhere for a model that has its classes already."""

    CLASSES = ("soil", "bedrock", "sand", "big rock")

    def test_by_name(self, tmp_path: Path) -> None:
        section = DataSection(source=str(make_mars(tmp_path, count=60)), ignore="background")
        whole, _ = load_aligned(section, "test", self.CLASSES, SEGMENTATION)
        turned, _ = load_aligned(section, "test", ("sand", "big rock", "soil", "bedrock"), SEGMENTATION)
        table = np.array([2, 3, 0, 1, *[IGNORE] * 252], dtype=np.uint8)
        assert np.array_equal(turned.targets, table[whole.targets])

    def test_by_number_with_the_background_ignored(self, tmp_path: Path) -> None:
        stored = masks(4, classes=4)
        arrays = {"test_images": some_images(4, gray=True), "test_masks": stored}
        np.savez(tmp_path / "x.npz", **arrays)
        section = DataSection(source=str(tmp_path / "x.npz"), ignore="background")
        found, _ = load_aligned(section, "test", self.CLASSES, SEGMENTATION)
        assert found.classes == self.CLASSES
        assert np.array_equal(found.targets, np.where(np.isin(stored, (0, IGNORE)), IGNORE, stored - 1))

    def test_a_class_that_the_model_does_not_know(self, tmp_path: Path) -> None:
        section = DataSection(source=str(make_mars(tmp_path)))
        with pytest.raises(DataError, match="background"):
            load_aligned(section, "test", self.CLASSES, SEGMENTATION)
        with pytest.raises(DataError, match="class 4; the model knows 4"):
            np.savez(tmp_path / "x.npz", test_images=some_images(4), test_masks=masks(4, classes=5))
            load_aligned(DataSection(source=str(tmp_path / "x.npz")), "test", self.CLASSES, SEGMENTATION)

    def test_targets_of_the_other_kind(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="has masks; this model was trained on labels"):
            load_aligned(
                DataSection(source=str(make_mask_npz(tmp_path / "a"))),
                "test",
                ("0", "1", "2"),
                find_task("classification"),
            )
        with pytest.raises(DataError, match="has labels; this model was trained on masks"):
            load_aligned(DataSection(source=str(make_npz(tmp_path / "b"))), "test", ("0", "1"), SEGMENTATION)


def whole(count: int, seed: int) -> np.ndarray:
    """Masks without unlabeled pixels."""
    return masks(count, seed) % np.uint8(3)


def whole_npz(folder: Path, **changes: Any) -> Path:
    stored = {f"{split}_masks": whole(count, index) for index, (split, count) in enumerate(COUNTS.items())}
    return make_mask_npz(folder, **{**stored, **changes})


@pytest.mark.parametrize(
    ("options", "ignored"),
    [
        ({"mask_values": [10, 20, 30], "ignore": 20}, 1),
        ({"mask_values": [30, 20, 10], "ignore": 30}, 2),
        ({"mask_values": [10, 20, 30], "classes": ["a", "b", "c"], "ignore": 10}, 0),
    ],
)
def test_a_number_to_ignore_is_a_value_of_the_masks(options: dict[str, Any], ignored: int, tmp_path: Path) -> None:
    stored = {f"{split}_masks": 10 * (whole(count, index) + 1) for index, (split, count) in enumerate(COUNTS.items())}
    data = load(make_mask_npz(tmp_path, **stored), **options)
    plain = whole(COUNTS["train"], 0)
    assert np.array_equal(data.split("train").targets == IGNORE, plain == ignored)
    assert len(data.classes) == 2


def test_a_number_to_ignore_is_a_class_number_whatever_the_order_of_classes(tmp_path: Path) -> None:
    path = whole_npz(tmp_path, classes=NAMES)
    data = load(path, classes=["rock", "sand", "background"], ignore=0)
    assert data.classes == ("rock", "sand")
    assert np.array_equal(data.split("train").targets == IGNORE, whole(COUNTS["train"], 0) == 0)
    data = load(whole_npz(tmp_path / "b"), classes=["2", "1", "0"])
    assert np.array_equal(data.split("train").targets, 2 - whole(COUNTS["train"], 0))


def test_a_value_to_ignore_may_be_255_or_has_to_be_listed(tmp_path: Path) -> None:
    stored = {
        f"{split}_masks": np.array([0, 128, 255], np.uint8)[whole(count, index)]
        for index, (split, count) in enumerate(COUNTS.items())
    }
    path = make_mask_npz(tmp_path, **stored)
    data = load(path, mask_values=[0, 128, 255], ignore=255)
    assert (
        np.array_equal(data.split("train").targets == IGNORE, whole(COUNTS["train"], 0) == 2) and len(data.classes) == 2
    )
    with pytest.raises(
        RequestError, match=r"data\.ignore is 3, which is not in data\.mask_values; that has 0, 128, 255"
    ):
        load(path, mask_values=[0, 128, 255], ignore=3)
    model = DataSection(source=str(path), mask_values=(0, 128, 255))
    found, _ = load_aligned(model, "train", ("0", "128", "255"), find_task("segmentation"))
    assert np.array_equal(found.targets, whole(COUNTS["train"], 0))  # 255 is a class of this model


def test_a_background_without_a_name_is_said(tmp_path: Path) -> None:
    path = make_mask_npz(tmp_path)
    said = "so 0 was taken for the background"
    assert any(said in text for text in load(path, ignore="background").warnings)
    assert not any(said in text for text in load(path).warnings)


def test_a_specialist_reads_masks_of_0_and_255_elsewhere_as_its_own(tmp_path: Path) -> None:
    stored = {
        f"{split}_masks": 255 * (whole(count, index) > 0).astype(np.uint8)
        for index, (split, count) in enumerate(COUNTS.items())
    }
    path = make_mask_npz(tmp_path, **stored)
    for options in ({"only": "255"}, {"only": "cell", "classes": ("ground", "cell")}):
        section = DataSection(source=str(path), **options)
        found, _ = load_aligned(section, "train", load(path, **options).classes, find_task("segmentation"))
        assert np.array_equal(found.targets == IGNORE, np.zeros_like(found.targets, bool))
        assert np.array_equal(found.targets, whole(COUNTS["train"], 0) > 0)


def test_a_third_folder_with_as_many_files_as_images_is_said(tmp_path: Path) -> None:
    make_mask_folders(tmp_path)
    for number in range(COUNTS["train"]):
        save_mask(tmp_path / f"train/1st_manual/{number:02d}_manual.gif", masks(1)[0])
    (said,) = [text for text in load(tmp_path).warnings if "as many files" in text]
    assert said.startswith(
        f"{tmp_path}/train/1st_manual has as many files as {tmp_path}/train/images, and was not used"
    )


def test_images_in_no_list_need_no_mask(tmp_path: Path) -> None:
    """As in VOC2012, most images of which have none."""
    for number, pixels in enumerate(some_images(8)):
        (tmp_path / "JPEGImages").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"JPEGImages/{number}.png")
        if number < 6:
            save_mask(tmp_path / f"SegmentationClass/{number}.png", masks(1, number)[0])
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n1\n2\n")
    (lists / "val.txt").write_text("3\n4\n")
    data = load(tmp_path)
    assert {split: len(part) for split, part in data.splits.items()} == {"train": 3, "val": 2}
    (lists / "val.txt").write_text("3\n7\n")
    with pytest.raises(DataError, match=r"7\.png has no mask"):
        load(tmp_path)
