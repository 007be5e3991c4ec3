"""Layouts of folders: recognized in the spellings and nestings that data sets use, or refused by name; never guessed into
classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_sources import load, make_folders, make_mask_folders, save_image, save_mask, some_images

from petriscope.core.errors import DataError
from petriscope.core.recipe import DataSection
from petriscope.data.omissions import LeftOut
from petriscope.data.sources import list_files
from petriscope.data.sources.spelling import bare_stem, may_say_masks, spelled, split_of
from petriscope.data.walk import walk

SPLITS = {
    "train": [
        "train",
        "Training",
        "TRAIN",
        "trn",
        "train_set",
        "seg_train",
        "1_train",
        "Training Data",
        "train2017",
        "data-train",
    ],
    "val": ["val", "VALID", "Validation", "dev", "dev_set", "val-set", "valid_data"],
    "test": ["test", "Testing", "TEST", "seg_test", "test_set", "tst", "my test"],
}
PLAIN = ["cat", "no_mask", "with mask", "trainer", "value", "devil", "contest", "12", "set", "data", "mask2", "x_train"]


def put(folder: Path, *names: str) -> Path:
    """Small images with these paths."""
    for number, name in enumerate(names):
        save_image(folder / name, some_images(1, seed=number)[0])
    return folder


def put_pair(folder: Path, image: str, mask: str, seed: int = 0) -> None:
    save_image(folder / image, some_images(1, seed=seed)[0])
    save_mask(folder / mask, np.arange(72, dtype=np.uint8).reshape(8, 9) % 3)


@pytest.mark.parametrize(("split", "name"), [(split, name) for split, names in SPLITS.items() for name in names])
def test_splits_are_known_in_all_spellings(split: str, name: str) -> None:
    assert split_of(name) == split == spelled(f"{name} images").split == split_of(f"{name} images")
    assert spelled(f"masks_{name}").role == "masks" or spelled(f"{name}_masks").role == "masks"


@pytest.mark.parametrize("name", PLAIN)
def test_other_names_say_nothing(name: str) -> None:
    assert spelled(name) == (None, None)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_any_name_can_be_read(name: str) -> None:
    split_of(name)
    assert bare_stem(name)[0] or not name


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(*(st.sampled_from(SPLITS[split]) for split in ("train", "val", "test")), st.booleans())
def test_split_folders_in_any_spelling(tmp_path_factory, train: str, val: str, test: str, inside: bool) -> None:
    folder = make_folders(tmp_path_factory.mktemp("x") / "data")
    if inside:  # the folder of the split within itself, as some archives have it
        (folder / "train").rename(folder / "part")
        (folder / "train").mkdir()
        (folder / "part").rename(folder / "train" / train)
    for old, new in (("train", train), ("val", val), ("test", test)):
        (folder / old).rename(folder / new)
    data = load(folder)
    assert {name: len(part) for name, part in data.splits.items()} == {"train": 12, "val": 4, "test": 4}
    assert data.classes == ("cat", "dog")


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    make_folders(tmp_path)
    put(tmp_path, "Validation/cat/x.png")
    with pytest.raises(DataError, match="has both Validation and val"):
        load(tmp_path)


def test_splits_in_class_folders(tmp_path: Path) -> None:
    names = [
        f"{kind}/{split}/{number}.png" for kind in ("cat", "dog") for split in ("train", "test") for number in range(6)
    ]
    data = load(put(tmp_path, *names), val_fraction=0)
    assert data.classes == ("cat", "dog") and set(data.splits) == {"train", "test"}
    assert all(name.split("/")[1] == "test" for name in data.split("test").ids)
    assert any("splits (test, train) were read from the class folders" in text for text in data.warnings)


def test_folders_that_are_called_like_splits_in_some_classes_are_said(tmp_path: Path) -> None:
    data = load(put(tmp_path, *(f"{kind}/{number}.png" for kind in ("cat", "dog", "dog/test") for number in range(4))))
    assert any(
        "dog/test is called like a split, but its images are read as of its class" in text for text in data.warnings
    )


@pytest.mark.parametrize("name", ["train", "test", "dev", "Training"])
def test_a_class_may_be_called_like_a_split(name: str, tmp_path: Path) -> None:
    data = load(put(tmp_path, *(f"{kind}/{number}.png" for kind in ("bus", "car", name) for number in range(4))))
    assert set(data.classes) == {"bus", "car", name}
    assert any(f"{name} is read as a class" in text for text in data.warnings)


@pytest.mark.parametrize(
    "names",
    [
        ("train", "test"),
        ("TRAIN", "Testing"),
        ("images", "labels_test"),
        ("images",),
        ("Train Images", "Test Images"),
        ("masks", "val"),
        ("train_224", "test_224"),
        ("cats_train", "cats_test", "dogs_train", "dogs_test"),
    ],
)
def test_splits_and_masks_are_never_classes(names: tuple[str, ...], tmp_path: Path) -> None:
    put(tmp_path, *(f"{name}/{place}.png" for place, name in enumerate(names)))
    with pytest.raises(DataError) as said:
        load(tmp_path)
    assert all(name in str(said.value) for name in names) and "train, val and test" in str(said.value)


@pytest.mark.parametrize("make", [make_folders, make_mask_folders])
def test_folders_around_the_set_are_entered(make, tmp_path: Path) -> None:
    plain, wrapped = make(tmp_path / "a"), make(tmp_path / "b/archive/Data 1.0").parents[1]
    one, other = load(plain), load(wrapped)
    assert one.split("val").digests() == other.split("val").digests() and one.classes == other.classes
    assert all(name.startswith("archive/Data 1.0/") for name in other.split("val").ids)


def test_entering_a_folder_is_said(tmp_path: Path) -> None:
    data = load(put(tmp_path, *(f"archive/{kind}/{number}.png" for kind in "ab" for number in range(6))))
    assert data.classes == ("a", "b") and any("one folder with images, archive" in text for text in data.warnings)


def test_class_folders_nested_in_themselves(tmp_path: Path) -> None:
    put(
        tmp_path,
        *(f"{top}{kind}/{number}.png" for top in ("", "pets/") for kind in ("cat", "dog") for number in range(3)),
    )
    with pytest.raises(DataError, match=r"pets has the class folders cat, dog again, nested in pets"):
        load(tmp_path)
    for number in range(3):
        (tmp_path / f"pets/dog/{number}.png").unlink()
    assert any("pets/cat is called like a class, but its images are read as pets" in w for w in load(tmp_path).warnings)


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("{split}/images/{n}.png", "{split}/masks/{n}.png"),
        ("{split}/src/{n}.png", "{split}/gt/{n}.png"),
        ("raw/{split}/{n}.png", "Segmented/{split}/{n}.png"),
        ("images/{split}/{n}.png", "masks/{split}/{n}.png"),
        ("{split}/img/{n}.jpg", "{split}/mask/{n}.png"),
        ("imgs/{split}/{n}.png", "labels/{split}/{n}.png"),
        ("{split}_images/{n}.png", "{split}_masks/{n}.png"),
        ("{split}/{n}.png", "{split}annot/{n}.png"),
        ("{split}/{n}.png", "{split}_labels/{n}.png"),
        ("set/JPEGImages/{split}/{n}.jpg", "set/SegmentationClass/{split}/{n}.png"),
        ("leftImg8bit/{split}/town/t_{n}_leftImg8bit.png", "gtFine/{split}/town/t_{n}_gtFine_labelIds.png"),
        ("Images/{split}/{n}.png", "Ground Truth/{split}/{n}_mask.png"),
        ("images/{split}/image_{n}.png", "annotations/trimaps/{split}/mask_{n}.png"),
        ("{split}/{n}.png", "{split}/{n}_mask.png"),
        ("{split}/slide/{n}.png", "{split}/slide/{n}-label.png"),
    ],
)
def test_pairs_of_images_and_masks(image: str, mask: str, tmp_path: Path) -> None:
    for split, count in (("train", 5), ("Val", 2), ("test", 2)):
        for number in range(count):
            put_pair(tmp_path, image.format(split=split, n=number), mask.format(split=split, n=number), number)
    files = list_files(str(tmp_path), DataSection())
    assert [file.split for file in files] == ["train"] * 5 + ["val"] * 2 + ["test"] * 2
    for file in files:
        number = file.path.stem.removesuffix("_leftImg8bit")[-1]
        assert file.mask is not None and number in file.mask.stem and file.split in str(file.mask).lower()
    data = load(tmp_path)
    assert data.task.dense and len(data.split("test")) == 2 and data.classes == ("0", "1", "2")


def test_of_several_kinds_of_masks_one_is_read(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number in range(3):
            image, mask = f"leftImg8bit/{split}/t_{number}_leftImg8bit.png", f"gtFine/{split}/t_{number}_gtFine_"
            put_pair(tmp_path, image, f"{mask}labelIds.png", number)
            put(tmp_path, f"{mask}color.png", f"{mask}instanceIds.png")
    files = list_files(str(tmp_path), DataSection())
    assert [file.mask.name for file in files if file.mask is not None] == [
        f"t_{number}_gtFine_labelIds.png" for number in (0, 1, 2, 0, 1, 2)
    ]
    warning = load(tmp_path).warnings[0]
    assert "6 masks with color, because there are labelids of the same images (gtFine/train/t_0_gtFine_" in warning
    assert "6 masks with instanceids" in warning
    (tmp_path / "gtFine/train/t_1_gtFine_labelIds.png").unlink()
    with pytest.raises(DataError, match=r"t_1_leftImg8bit\.png has no mask"):
        load(tmp_path)


def test_pairs_without_splits(tmp_path: Path) -> None:
    for number in range(12):
        put_pair(tmp_path, f"JPEGImages/{number}.png", f"SegmentationClass/{number}.png", number)
    put(tmp_path, "previews/x.png", "images_test/x.png")
    data = load(tmp_path)
    assert data.task.dense and len(data.splits) == 3
    (warning,) = data.warnings
    assert "1 image beside those with masks (previews/x.png)" in warning
    assert "1 image without a folder of masks (images_test/x.png)" in warning


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("images/1.png", "images/2.png", "masks/1.png"), "images/2.png has no mask; put 2.png in .*masks"),
        (("images/1.png", "masks/1.png", "masks/2.png"), "masks/2.png has no image in .*images"),
        (("images/1.png", "images/1.jpg", "masks/1.png"), "has both 1.jpg and 1.png"),
        (("images/1.png", "imgs/1.png", "masks/1.png"), "images and imgs, which seem to be of the same images"),
        (("images/a/1.png", "masks/b/1.png"), "images in images/a and masks in masks/b"),
        (("images/1.png", "masks/1.png", "images/val/1.png", "masks/val/1.png"), "images beside them; move"),
    ],
)
def test_pairs_that_do_not_fit(names: tuple[str, ...], says: str, tmp_path: Path) -> None:
    put(tmp_path, *names)
    with pytest.raises(DataError, match=says.replace(".", r"\.").replace(r"\.*", ".*")):
        load(tmp_path)


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", "$RECYCLE.BIN", ".ipynb_checkpoints", ".thumbs", "@__thumb"])
def test_what_systems_leave_is_left_out_and_named(name: str, tmp_path: Path) -> None:
    folder = make_folders(tmp_path)
    before = load(folder)
    put(folder, f"{name}/cat/x.png", f"train/{name}/x.png", f"train/cat/{name}/x.png")
    data = load(folder)
    assert data.fingerprint == before.fingerprint
    (warning,) = data.warnings
    assert f"3 hidden or system folders ({name})" in warning


def test_files_of_unknown_kinds_are_counted_by_suffix(tmp_path: Path) -> None:
    folder = make_folders(tmp_path)
    for name in ("train/cat/a.HEIC", "train/cat/b.heic", "val/dog/c.nii", "readme"):
        (folder / name).write_bytes(b"x")
    (warning,) = load(folder).warnings
    assert "2 .heic files (train/cat/a.HEIC), 1 " in warning
    assert "1 .nii file (val/dog/c.nii)" in warning and "1 file without a suffix (readme)" in warning


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    put(tmp_path / "far", *(f"{kind}/{number}.png" for kind in "ab" for number in range(6)))
    source = tmp_path / "source"
    source.mkdir()
    for kind in "ab":
        (source / kind).symlink_to(tmp_path / "far" / kind)
    for place, target in (
        ("far/a/up", "far"),
        ("far/a/top", ""),
        ("far/b/back", "source"),
        ("far/b/self", "far/b/self"),
    ):
        (tmp_path / place).symlink_to(tmp_path / target)
    data = load(source)
    assert sum(map(len, data.splits.values())) == 12 and data.classes == ("a", "b")
    assert "3 links to folders of the source itself" in data.warnings[0]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (("x/1.heic", "y/2.heic"), "has no images but 2 .heic files"),
        (("cat/1.png", "dog/1.nii"), "class folder .*dog has no images but 1 .nii file, not read"),
        (("train/images/1.png", "train/labels/1.txt"), "labels has .txt files: boxes and outlines"),
        (("images/val/1.png", "labels/val/1.txt"), "labels/val has .txt files|labels has .txt files: boxes"),
        (("train/1.png", "train/_classes.csv"), "If train/_classes.csv lists or holds the images, name it"),
        (("a.png", "a.json", "b.png", "b.json"), "has .json files: boxes and outlines"),
        (("all.zip",), "has no images but 1 .zip file, to be unpacked first"),
        (("images/1.png", "labels.csv"), "If labels.csv lists or holds the images, name it"),
        (("cat_1.png", "cat_2.png", "dog_1.png", "dog_2.png"), "begin with their classes.*table .CSV"),
    ],
)
def test_other_layouts_are_named_for_what_they_are(files: tuple[str, ...], says: str, tmp_path: Path) -> None:
    put(tmp_path, *(name for name in files if name.endswith("png")))
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=says) as said:
        load(tmp_path)
    assert "remove" not in str(said.value) and "delete" not in str(said.value)


def test_a_deep_tree_is_refused(tmp_path: Path) -> None:
    (tmp_path / "/".join("x" * 60)).mkdir(parents=True)
    with pytest.raises(DataError, match="nested more than 50 folders deep"):
        walk(tmp_path, LeftOut())


def test_folders_around_pairs_of_files_are_said_to_be_no_classes(tmp_path: Path) -> None:
    for number in range(8):
        put_pair(tmp_path, f"{'ab'[number % 2]}/{number}.png", f"{'ab'[number % 2]}/{number}_mask.png", number)
    data = load(tmp_path)
    assert data.task.dense and any("a/0.png and a/0_mask.png; folders are no classes" in text for text in data.warnings)


def test_a_class_may_be_called_like_masks(tmp_path: Path) -> None:
    put(tmp_path, *(f"{name}/{name}{number}.png" for name in ("target", "other") for number in range(6)), "logo.png")
    assert load(tmp_path).classes == ("other", "target")


@pytest.mark.parametrize(
    ("one", "other"), [("bilder", "Masks"), ("Images", "masken"), ("x", "ground_truth"), ("img", "y")]
)
def test_folders_that_may_be_images_and_masks_are_asked_about(one: str, other: str, tmp_path: Path) -> None:
    put(tmp_path, *(f"{name}/{number}.png" for name in (one, other) for number in range(6)))
    with pytest.raises(DataError, match="with files of the same names: images and masks, or classes") as said:
        load(tmp_path)
    assert one in str(said.value) and other in str(said.value)


WORDS = (
    "mask Labels labeledimages labelids annots anns GT groundtruth segmap segs segmented targets trimap gtFine semanticmask "
    "segmentationClassPNG"
)


@pytest.mark.parametrize("word", WORDS.split())
def test_no_name_of_a_mask_is_overlooked(word: str) -> None:
    for name in (f"{word}_cell_3", f"cell_3-{word}"):
        assert bare_stem(name)[1] == "masks" and may_say_masks(["a.png", f"{name}.png"])
    assert not may_say_masks(["a_1.png", "b_2.jpeg"])


def pictures(folder: Path, one: str, other: str, gray: bool, ending: str = "") -> Path:
    for number, pixels in enumerate(some_images(3)):
        save_image(folder / one / f"s{number}.png", pixels)
        save_image(folder / other / f"s{number}{ending}.png", some_images(1, gray=gray, seed=number)[0])
    return folder


def test_images_and_masks_in_folders_of_other_names_are_refused_or_said(tmp_path: Path) -> None:
    names = ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth")
    with pytest.raises(DataError, match="with files of the same names: images and masks, or classes"):
        load(pictures(tmp_path / "isic", *names, gray=True, ending="_segmentation"))
    with pytest.raises(DataError, match="images and masks, or classes"):
        load(pictures(tmp_path / "raw", "raw", "label_1", gray=True))
    said = "of the same names, in color and gray, and were read as classes; if truth has masks of the images in stained"
    one, other = (load(pictures(tmp_path / str(gray), "stained", "truth", gray)).warnings for gray in (True, False))
    assert any(said in text for text in one) and not any("of the same names" in text for text in other)
