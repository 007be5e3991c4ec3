"""Layouts in which data sets are published: read as their authors meant them, or else it is said what was not read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_sources import load, save_image, save_mask, some_images

from petriscope.core.errors import DataError, RequestError
from petriscope.data import Dataset


def put(folder: Path, *names: str) -> Path:
    """Small images with these paths, all different."""
    for number, name in enumerate(names):
        save_image(folder / name, some_images(1, seed=number)[0])
    return folder


def numbered(*patterns: str, count: int = 6) -> list[str]:
    return [pattern.format(n=number) for pattern in patterns for number in range(count)]


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def says(data: Dataset, text: str) -> bool:
    return any(text in warning for warning in data.warnings)


def of_split(data: Dataset, split: str) -> set[str]:
    return {Path(name).parts[0] for name in data.split(split).ids.tolist()}


class TestTables:
    def test_splits_are_the_folders_in_the_paths(self, tmp_path: Path) -> None:
        names = numbered("train/a{n}.png", "train/b{n}.png", "test/a{n}.png", "test/b{n}.png", count=4)
        put(tmp_path, *names)
        lines = [f"{name},{Path(name).stem[0]}" for name in names]
        path = write(tmp_path / "metadata.csv", "file_name,label", *lines)
        for source in (path, tmp_path):
            data = load(source)
            assert of_split(data, "test") == {"test"} and len(data.split("test")) == 8
            assert of_split(data, "train") == {"train"}
            assert says(data, "the splits (test, train) were read from the folders in its paths")
        write(
            path,
            "file_name,label,split",
            *(f"{line},train" for line in lines[:12]),
            *(f"{line},test" for line in lines[12:]),
        )
        assert len(load(path).split("test")) == 4  # a column comes before folders

    def test_where_some_paths_have_no_split_that_is_said(self, tmp_path: Path) -> None:
        names = [*numbered("train/{n}.png", "test/{n}.png"), "more/1.png"]
        put(tmp_path, *names)
        lines = (f"{name},{'ab'[number % 2]}" for number, name in enumerate(names))
        data = load(write(tmp_path / "a.csv", "path,label", *lines))
        assert says(data, "may say the splits, but row 12 (counted from 0), more/1.png, has none")
        assert len(data.split("train")) > 6

    def test_folders_that_are_the_labels_are_no_splits(self, tmp_path: Path) -> None:
        names = put(tmp_path, *numbered("day1/training/{n}.png", "day1/test/{n}.png")) and numbered(
            "day1/training/{n}.png", "day1/test/{n}.png"
        )
        data = load(write(tmp_path / "a.csv", "path,label", *(f"{name},{name.split('/')[1]}" for name in names)))
        assert data.classes == ("test", "training") and not says(data, "splits")

    def test_a_class_that_train_lacks(self, tmp_path: Path) -> None:
        names = numbered("train/{n}.png", "test/{n}.png")
        put(tmp_path, *names)
        lines = (f"{name},{'ab'[number % 2] if number < 11 else 'c'}" for number, name in enumerate(names))
        data = load(write(tmp_path / "a.csv", "path,label", *lines))
        assert says(data, "may say the splits, but test has c, and train has not, so they were not read as such")

    def test_absolute_paths_below_a_folder_that_is_called_like_a_split(self, tmp_path: Path) -> None:
        names = numbered("training/A/{n}.png", "training/B/{n}.png")
        put(tmp_path, *names)
        lines = (f"{tmp_path / name},{name.split('/')[1]}" for name in names)
        data = load(write(tmp_path / "training/a.csv", "path,label", *lines))
        assert {*data.splits} == {"train", "val", "test"} and not says(data, "splits")

    def test_all_in_train_is_no_split(self, tmp_path: Path) -> None:
        names = put(tmp_path, *numbered("train/{n}.png", count=12)) and numbered("train/{n}.png", count=12)
        lines = (f"{name},{'ab'[number % 2]}" for number, name in enumerate(names))
        data = load(write(tmp_path / "a.csv", "path,label", *lines))
        assert {*data.splits} == {"train", "val", "test"} and not says(data, "splits")

    def test_a_submission_is_not_read(self, tmp_path: Path) -> None:
        put(tmp_path, *numbered("images/{n}.png"))
        write(tmp_path / "sampleSubmission.csv", "id,label", *(f"{n},{n % 2}" for n in range(6)))
        with pytest.raises(DataError) as said:
            load(tmp_path)
        assert "sampleSubmission" not in str(said.value)
        write(tmp_path / "train.csv", "id_code,diagnosis", *(f"{n},{n % 2}" for n in range(6)))
        with pytest.raises(DataError, match="no column 'label'"):
            load(tmp_path)

    def test_paths_that_begin_in_the_folder_of_the_table(self, tmp_path: Path) -> None:
        names = numbered("set-v1/train/p{n}/view1.png", count=12)
        put(tmp_path, *names)
        lines = (f"{name},{'ab'[number % 2]}" for number, name in enumerate(names))
        data = load(write(tmp_path / "set-v1/train.csv", "Path,label", *lines))
        assert sum(map(len, data.splits.values())) == 12
        assert says(data, "its paths begin with set-v1/, the folder that it is in, and were read from there")

    def test_a_name_in_two_splits_is_that_of_the_split_of_the_table(self, tmp_path: Path) -> None:
        put(tmp_path, *numbered("train/{n}.png", "test/{n}.png"))
        path = write(tmp_path / "trainLabels.csv", "id,label", *(f"{n},{'ab'[n % 2]}" for n in range(6)))
        data = load(path, val_fraction=0, test_fraction=0)
        assert of_split(data, "train") == {"train"} and len(data.split("train")) == 6

    @pytest.mark.parametrize("task", ["classification", "multilabel"])
    def test_a_table_in_each_split_folder(self, task: str, tmp_path: Path) -> None:
        put(tmp_path, *numbered("train/{n}.png", "test/{n}.png"))
        for split in ("train", "test"):
            header = "file_name,label,day,note" if split == "train" else "file_name,label,day"
            lines = [f"{n}.png,{'ab'[n % 2]},monday{',x' * (split == 'train')}" for n in range(6)]
            write(tmp_path / split / "metadata.csv", header, *lines)
        data = load(tmp_path, task=task, val_fraction=0)
        assert of_split(data, "train") == {"train"} and of_split(data, "test") == {"test"}
        assert data.classes == ("a", "b") and len(data.split("test")) == 6
        assert {*data.train.columns} == {"day"} and says(data, "have the column note, which was left out")
        (tmp_path / "test/metadata.csv").rename(tmp_path / "test/other.csv")
        with pytest.raises((DataError, RequestError)):
            load(tmp_path, task=task)

    def test_one_column_is_no_table(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="has one column, 'Abyssinian_100 1 1 1'; a table has a header"):
            load(write(tmp_path / "list.txt", "Abyssinian_100 1 1 1", "Bengal_1 2 1 1"))

    def test_the_table_of_parts_of_a_set_is_read_when_its_column_is_named(self, tmp_path: Path) -> None:
        put(tmp_path, *numbered("images_part_1/a{n}.png", "images_part_2/b{n}.png"))
        lines = (f"{letter}{n},{('mel', 'nv')[n % 2]}" for letter in "ab" for n in range(6))
        write(tmp_path / "HAM_metadata.csv", "image_id,dx", *lines)
        write(tmp_path / "pixels.csv", "pixel0,pixel1,label", "1,2,0")
        data = load(tmp_path)
        assert says(data, "images_part_1, images_part_2 in") and says(data, "HAM_metadata.csv in")
        assert load(tmp_path, label="dx").classes == ("mel", "nv")

    def test_the_table_of_labels_among_many(self, tmp_path: Path) -> None:
        put(tmp_path, *numbered("{n}.png", count=12))
        for number in range(12):
            write(tmp_path / f"a{number}.csv", "path,area", "x.png,1")
        write(tmp_path / "labels.csv", "path,label", *(f"{n}.png,{'ab'[n % 2]}" for n in range(12)))
        assert load(tmp_path).classes == ("a", "b")

    def test_one_class_folder_beside_a_table(self, tmp_path: Path) -> None:
        source = tmp_path / "set"
        put(source, *numbered("train-jpg/{n}.png", count=12))
        write(source / "labels.csv", "image_name,label", *(f"{n},{'ab'[n % 2]}" for n in range(12)))
        data = load(source)
        assert data.classes == ("a", "b") and says(data, "has one class folder, so labels.csv in it was read")
        write(source / "labels.csv", "path,area", *(f"train-jpg/{n}.png,{n}" for n in range(12)))
        with pytest.raises(DataError, match=r"only one class, .*labels.csv in .* lists images, and was not read"):
            load(source)

    @pytest.mark.parametrize("task", ["auto", "multilabel"])
    def test_labels_that_are_parted_by_blanks(self, task: str, tmp_path: Path) -> None:
        put(tmp_path, *numbered("{n}.png", count=12))
        labels = ("rust", "scab", "rust complex", "complex")
        path = write(tmp_path / "a.csv", "path,label", *(f"{n}.png,{labels[n % 4]}" for n in range(12)))
        data = load(path, task=task, val_fraction=0, test_fraction=0)
        if task == "auto":
            assert data.classes == ("complex", "rust", "rust complex", "scab") and not says(data, "several")
        else:
            assert data.classes == ("complex", "rust", "scab")
            assert says(
                data, "labels are parted by blanks, since all that have some, such as rust complex, consist of others"
            )

    def test_where_not_all_labels_with_blanks_consist_of_others_they_are_names(self, tmp_path: Path) -> None:
        put(tmp_path, *numbered("{n}.png", count=12))
        labels = ("kein Befund", "Rost", "Riss", "Rost Riss")
        path = write(tmp_path / "a.csv", "path,label", *(f"{n}.png,{labels[n % 4]}" for n in range(12)))
        data = load(path, task="multilabel", val_fraction=0, test_fraction=0)
        assert data.classes == ("Riss", "Rost", "Rost Riss", "kein Befund")
        assert says(data, "such as Rost Riss, and others, such as kein Befund, do not; write | between")

    def test_names_with_blanks_are_names(self, tmp_path: Path) -> None:
        put(tmp_path, *numbered("{n}.png", count=12))
        path = write(tmp_path / "a.csv", "path,label", *(f"{n}.png,{('red cell', 'dust')[n % 2]}" for n in range(12)))
        assert load(path, task="multilabel").classes == ("dust", "red cell")

    def test_flags_of_minus_one_and_one(self, tmp_path: Path) -> None:
        put(tmp_path, *numbered("{n}.png", count=4))
        lines = (f"{n}.png,{n % 2 * 2 - 1},{1 - n % 2 * 2}" for n in range(4))
        with pytest.raises(DataError, match="it has -1 and 1; write 0 in place of -1 if that says"):
            load(write(tmp_path / "a.csv", "path,Bald,Smiling", *lines))


class TestFolders:
    def test_lists_beside_the_images_are_counted_and_may_say_the_splits(self, tmp_path: Path) -> None:
        put(tmp_path, *numbered("food/images/pie/{n}.png", "food/images/ribs/{n}.png"))
        for name in ("train.txt", "test.txt", "classes.txt"):
            write(tmp_path / "food/meta" / name, "pie/1")
        data = load(tmp_path)
        assert data.classes == ("pie", "ribs")
        assert says(data, "food/meta/test.txt and 1 more may say the splits; folders of classes were read")
        assert says(data, "left out 3 .txt files")

    def test_folders_in_the_classes_are_said(self, tmp_path: Path) -> None:
        put(
            tmp_path,
            *numbered("colon/colon_aca/{n}.png", "colon/colon_n/{n}.png", "lung/lung_n/{n}.png", "lung/scc/{n}.png"),
        )
        data = load(tmp_path)
        assert data.classes == ("colon", "lung")
        assert says(
            data, "have folders (colon_aca, colon_n, lung_n, scc), which were not read as classes. If these are"
        )

    def test_images_beside_folders_of_a_class_are_said(self, tmp_path: Path) -> None:
        put(tmp_path, *numbered("a/a/{n}.png", "a/a/cropped/x{n}.png", "b/b/{n}.png"))
        assert says(load(tmp_path), "a/a has images, and more in cropped; all of them were read as a")

    @pytest.mark.parametrize(
        "names",
        [
            ("testA/{n}.png", "testB/{n}.png", "trainA/{n}.png", "trainB/{n}.png"),
            ("images/{n}.png", "labels-ah/{n}.ah.png", "labels-vk/{n}.vk.png"),
            (
                "dataA/CameraRGB/{n}.png",
                "dataA/CameraSeg/{n}.png",
                "dataB/CameraRGB/{n}.png",
                "dataB/CameraSeg/{n}.png",
            ),
            ("A/1. Original Images/I_{n}.png", "A/2. All Segmentation Groundtruths/MA/I_{n}_MA.png"),
            ("CXR_png/{n}.png", "ManualMask/leftMask/{n}.png", "ManualMask/rightMask/{n}.png"),
        ],
    )
    def test_splits_and_masks_are_no_classes(self, names: tuple[str, ...], tmp_path: Path) -> None:
        put(tmp_path, *numbered(*names))
        with pytest.raises(DataError, match="classes"):
            load(tmp_path)

    @pytest.mark.parametrize(
        "names",
        [
            ("with_mask", "no_mask", "no_face_photo"),
            ("test_tube", "train", "car"),
            ("grade1", "grade2"),
            ("Segmented neutrophil", "Band neutrophil", "Frame artefact"),
            ("LabelMissing", "FrameBent", "PatchOk"),
            ("mutVal", "mutTest", "wt"),
            ("valid_ticket", "test_ticket", "fake_ticket"),
            ("Apartment 1", "Apartment 2"),
        ],
    )
    def test_classes_that_are_called_like_masks_or_splits_stay_classes(
        self, names: tuple[str, ...], tmp_path: Path
    ) -> None:
        put(tmp_path, *numbered(*(f"{name}/{name[:5]}{{n}}.png" for name in names)))
        data = load(tmp_path)
        assert data.classes == tuple(sorted(names))
        assert all("is read as a class and no split" in text for text in data.warnings)

    def test_classes_that_may_be_splits_are_said(self, tmp_path: Path) -> None:
        put(tmp_path, *numbered("bounding_box_train/{n}.png", "bounding_box_test/{n}.png", "query/{n}.png"))
        assert says(load(tmp_path), "bounding_box_test and bounding_box_train were read as classes; if they are splits")

    def test_files_that_are_called_as_others_with_a_word_more(self, tmp_path: Path) -> None:
        put(tmp_path, *numbered("a/{n}.png", "a/{n}-d.png", "b/{n}.png", "b/{n}-d.png", "c/{n}.png"))
        assert says(load(tmp_path), "a, and some in 1 more class folder, are called as another with -d behind its name")

    def test_folders_that_may_be_of_patients_are_said_where_splits_are_drawn(self, tmp_path: Path) -> None:
        put(tmp_path / "set", *numbered("a/p1/{n}.png", "a/p2/{n}.png", "b/p3/{n}.png"))
        data = load(tmp_path / "set")
        (warning,) = (text for text in data.warnings if "have folders (p1, p2, p3)" in text)
        pattern = warning.split("--set data.group='")[1].split("'")[0]
        grouped = load(tmp_path / "set", group=pattern)
        assert {group for part in grouped.splits.values() for group in part.groups.tolist()} == {"p1", "p2", "p3"}
        assert not says(grouped, "have folders")
        put(tmp_path / "set", "a/1.png")
        assert not says(load(tmp_path / "set"), "have folders")

    def test_a_list_of_classes_beside_text_is_no_annotation(self, tmp_path: Path) -> None:
        put(tmp_path, *numbered("images/001.a/{n}.png", "images/002.b/{n}.png"))
        write(tmp_path / "classes.txt", "1 001.a", "2 002.b")
        write(tmp_path / "bounding_boxes.txt", "1 3.0 4.0 5.0 6.0")
        assert load(tmp_path).classes == ("001.a", "002.b")


class TestMasks:
    def pairs(self, folder: Path, image: str, mask: str, *groups: str) -> Path:
        for place, group in enumerate(groups or ("",)):
            for number in range(4):
                save_image(folder / image.format(g=group, n=number), some_images(1, seed=10 * place + number)[0])
                save_mask(folder / mask.format(g=group, n=number), np.arange(72, dtype=np.uint8).reshape(8, 9) % 3)
        return folder

    def test_folders_with_the_type_of_file_in_their_names(self, tmp_path: Path) -> None:
        self.pairs(tmp_path, "Train/{g}/images_png/{n}.png", "Train/{g}/masks_png/{n}.png", "Urban", "Rural")
        data = load(tmp_path)
        assert data.task.dense and says(
            data, "folders (Rural, Urban) are no classes; to classify by them, move the masks"
        )

    def test_images_that_are_called_sat(self, tmp_path: Path) -> None:
        self.pairs(tmp_path, "train/{n}_sat.png", "train/{n}_mask.png")
        data = load(tmp_path, val_fraction=0, test_fraction=0)
        assert data.task.dense and data.split("train").ids.tolist() == [f"train/{n}_sat.png" for n in range(4)]

    def test_several_masks_of_an_image_are_to_be_merged(self, tmp_path: Path) -> None:
        self.pairs(tmp_path, "{n}.png", "{n}_mask.png")
        save_mask(tmp_path / "3_mask_1.png", np.zeros((8, 9), np.uint8))
        with pytest.raises(
            DataError, match=r"3_mask_1\.png is one more mask of the image that 3_mask\.png is of; merge"
        ):
            load(tmp_path)
        left = load(tmp_path, unreadable="skip", val_fraction=0, test_fraction=0)
        assert sorted(left.split("train").ids.tolist()) == ["0.png", "1.png", "2.png"]

    def test_numbers_behind_names_that_fit_are_names(self, tmp_path: Path) -> None:
        for name in ("seg", "seg1", "seg2", "wgt", "wgt1", "p_label", "p_label_1"):
            save_image(tmp_path / f"images/{name}.png", some_images(1, seed=len(name))[0])
            save_mask(tmp_path / f"masks/{name}.png", np.arange(72, dtype=np.uint8).reshape(8, 9) % 3)
        assert sum(map(len, load(tmp_path).splits.values())) == 7

    @pytest.mark.parametrize("unreadable", ["stop", "skip"])
    def test_where_every_image_has_several_masks(self, unreadable: str, tmp_path: Path) -> None:
        self.pairs(tmp_path, "images/{n}.png", "masks/{n}_mask.png")
        self.pairs(tmp_path, "images/{n}.png", "masks/{n}_mask_1.png")
        with pytest.raises(DataError, match=r"merge its masks into one|no image with a mask"):
            load(tmp_path, unreadable=unreadable)

    def test_one_image_beside_a_stray_mask(self, tmp_path: Path) -> None:
        self.pairs(tmp_path, "images/{n}.png", "masks/{n}_mask.png")
        for number in (1, 2, 3):
            (tmp_path / f"images/{number}.png").unlink()
        with pytest.raises(DataError, match=r"1_mask\.png has no image"):
            load(tmp_path)

    def test_a_mask_per_object_is_to_be_merged(self, tmp_path: Path) -> None:
        for image in ("one", "two"):
            put(tmp_path, f"{image}/images/{image}.png")
            for number in range(3):
                save_mask(tmp_path / f"{image}/masks/{image}{number}.png", np.zeros((8, 9), np.uint8))
        with pytest.raises(DataError, match=r"masks has 3 masks of .*one\.png; merge them into one, of the same name"):
            load(tmp_path)


def test_two_arrays_that_would_have_one_name(tmp_path: Path) -> None:
    pixels, labels = some_images(8), np.arange(8) % 2
    np.savez(tmp_path / "a.npz", x_train=pixels, y_train=labels, x_val=pixels, x_valid=pixels)
    with pytest.raises(DataError, match="there is no train_images"):
        load(tmp_path / "a.npz")


def test_arrays_as_keras_calls_them(tmp_path: Path) -> None:
    pixels, labels = some_images(8), np.arange(8) % 2
    np.savez(tmp_path / "keras.npz", x_train=pixels, y_train=labels, x_test=pixels[:2] // 2, y_test=labels[:2])
    np.savez(
        tmp_path / "ours.npz",
        train_images=pixels,
        train_labels=labels,
        test_images=pixels[:2] // 2,
        test_labels=labels[:2],
    )
    assert load(tmp_path / "keras.npz").fingerprint == load(tmp_path / "ours.npz").fingerprint
