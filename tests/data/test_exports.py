"""Exports of labelling tools: the same images with the same boxes and polygons are the same data in every format."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_exports import (
    CLASSES,
    HEIGHT,
    SPLITS,
    WIDTH,
    WRITERS,
    coco,
    make_export,
    pictures,
    pixels,
    put_json,
    put_text,
    save_pictures,
    voc,
    write_coco,
)
from small_sources import load, save_image

from petriscope.core.errors import DataError, RequestError
from petriscope.core.recipe import CropSection, DataSection
from petriscope.data import load_dataset
from petriscope.data.background import background_colors
from petriscope.data.sources.exports.crops import window
from petriscope.data.sources.exports.outlines import inside_rings

CROP = {"margin": 0.25}
OUTLINES = [tool for tool in WRITERS if tool != "voc"]


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("tool", WRITERS)
def test_boxes_become_the_same_crops_in_every_format(tool: str, gray: bool, tmp_path: Path) -> None:
    found = make_export(tmp_path / "set", tool, gray=gray)
    data = load(tmp_path / "set", crop=CROP, size=16, filter="nearest")
    assert data.classes == tuple(sorted(CLASSES)) and not data.task.dense and data.drawn == ()
    assert data.shape == (16, 16, 1 if gray else 3)
    for split, part in data.splits.items():
        wanted = [(index, each) for index, each in enumerate(found) if each.split == split]
        assert part.ids.tolist() == [f"{each.id}#{number}" for _, each in wanted for number in range(3)]
        assert part.groups is not None and part.groups.tolist() == [each.id for _, each in wanted for _ in range(3)]
        labels = [part.classes[label] for label in part.targets]
        assert labels == [each.label for _, picture in wanted for each in picture.objects]
        for (index, picture), first in zip(wanted, range(0, len(part), 3), strict=True):
            for number, each in enumerate(picture.objects):
                assert np.array_equal(part.images[first + number], _crop(pixels(index, gray), each.box))


def _crop(image: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """A square around a box, wider by a quarter of the longer side at each end, as 16 x 16 pixels."""
    left, top, right, bottom = box
    side = round(1.5 * max(right - left, bottom - top))
    y, x = (top + bottom - side) / 2, (left + right - side) / 2
    assert y == int(y) and x == int(x)
    around = np.empty((3 * HEIGHT, 3 * WIDTH, image.shape[2]), np.uint8)
    around[:] = background_colors(image[None])[0]
    around[HEIGHT : 2 * HEIGHT, WIDTH : 2 * WIDTH] = image
    piece = around[HEIGHT + int(y) :, WIDTH + int(x) :][:side, :side]
    shown = Image.fromarray(piece[..., 0] if piece.shape[2] == 1 else piece).resize((16, 16), Image.Resampling.NEAREST)
    return np.asarray(shown).reshape(16, 16, -1)


@pytest.mark.parametrize("tool", WRITERS)
def test_splits_are_drawn_by_image(tool: str, tmp_path: Path) -> None:
    make_export(tmp_path / "set", tool, splits=False)
    data = load(tmp_path / "set", crop=CROP, val_fraction=0.2, test_fraction=0.2)
    homes = {split: {id.rpartition("#")[0] for id in part.ids} for split, part in data.splits.items()}
    assert {*homes} == {"train", "val", "test"} and sum(map(len, homes.values())) == len(SPLITS)
    again = load(tmp_path / "set", crop=CROP, val_fraction=0.2, test_fraction=0.2)
    assert again.fingerprint == data.fingerprint and again.warnings == data.warnings


@pytest.mark.parametrize("tool", OUTLINES)
def test_outlines_become_the_same_masks_in_every_format(tool: str, tmp_path: Path) -> None:
    found = make_export(tmp_path / "set", tool, outlines=True)
    data = load(tmp_path / "set")
    declared = tuple(sorted(CLASSES)) if tool in ("labelme", "label studio") else CLASSES
    assert data.task.dense and data.classes == ("background", *declared) and data.shape == (HEIGHT, WIDTH, 3)
    for split, part in data.splits.items():
        wanted = [each for each in found if each.split == split]
        assert part.ids.tolist() == [each.id for each in wanted]
        for mask, picture in zip(part.targets, wanted, strict=True):
            truth = np.zeros((HEIGHT, WIDTH), np.uint8)
            for each in picture.objects:
                left, top, right, bottom = each.box
                cut = min(right - left, bottom - top) // 4
                y, x = np.mgrid[top:bottom, left:right] + 0.5
                far = np.minimum(x - left, right - x) + np.minimum(y - top, bottom - y)
                # On a diagonal through a pixel's center, either answer is right.
                sure = far != cut
                value = data.classes.index(each.label)
                assert (mask[top:bottom, left:right][sure & (far > cut)] == value).all()
                truth[top:bottom, left:right] = 1
            assert (mask[truth == 0] == 0).all()
    assert load(tmp_path / "set", crop=CROP).task.name == "classification"


@pytest.mark.parametrize("tool", WRITERS)
def test_boxes_alone_are_refused_without_data_crop(tool: str, tmp_path: Path) -> None:
    make_export(tmp_path / "set", tool)
    with pytest.raises(DataError, match=r"15 boxes and no outlines.*--set data\.crop\.margin=0\.1"):
        load(tmp_path / "set")


@pytest.mark.parametrize("tool", ["coco", "cvat", "yolo"])
def test_the_file_of_annotations_can_be_named_too(tool: str, tmp_path: Path) -> None:
    make_export(tmp_path / "set", tool, splits=False)
    name = {"coco": "annotations/instances.json", "cvat": "annotations.xml", "yolo": "data.yaml"}[tool]
    if tool == "yolo":
        (tmp_path / "set/data.yaml").write_text(f"names: {json.dumps(CLASSES)}\n")
    one, two = load(tmp_path / "set" / name, crop=CROP), load(tmp_path / "set", crop=CROP)
    assert one.fingerprint == two.fingerprint


def test_columns_have_what_the_tool_says(tmp_path: Path) -> None:
    make_export(tmp_path / "voc", "voc")
    make_export(tmp_path / "cvat", "cvat")
    voc, cvat = (load(tmp_path / tool, crop=CROP).split("train").columns for tool in ("voc", "cvat"))
    assert voc["truncated"].tolist() == cvat["occluded"].tolist() == ["0", "0", "1"] * 3
    assert voc["difficult"].tolist() == ["0"] * 9


@pytest.mark.parametrize(
    ("box", "crop", "wanted"),
    [
        ((10, 20, 30, 28), {"margin": 0}, (14, 10, 20, 20)),
        ((10, 20, 30, 28), {"margin": 0.1}, (12, 8, 24, 24)),
        ((10, 20, 30, 28), {"margin": 0.1, "size": "box"}, (18, 8, 12, 24)),
        ((0, 0, 0.2, 0.2), {"margin": 0}, (0, 0, 1, 1)),
    ],
)
def test_windows(box: tuple[float, ...], crop: dict, wanted: tuple[int, ...]) -> None:
    assert window(box, CropSection(**crop)) == wanted


def test_crop_and_masks_exclude_one_another(tmp_path: Path) -> None:
    make_export(tmp_path / "set", "coco", outlines=True)
    with pytest.raises(RequestError, match=r"data\.crop cuts out objects"):
        load(tmp_path / "set", crop=CROP, task="segmentation")
    with pytest.raises(DataError, match=r"data\.task is classification; cut out"):
        load(tmp_path / "set", task="classification")
    assert any("the outlines became masks" in text for text in load(tmp_path / "set").warnings)
    assert any("the boxes were cut out" in text for text in load(tmp_path / "set", crop=CROP).warnings)


def _coco(folder: Path, **changes: Any) -> dict:
    """The tree of a COCO file without splits, with the images beside it."""
    found = make_export(folder, "coco", splits=False, **changes)
    return coco(found)


def _set(path: tuple, value: Any) -> Callable[[dict], None]:
    def change(tree: Any) -> None:
        for step in path[:-1]:
            tree = tree[step]
        tree[path[-1]] = value

    return change


COCO_FAULTS: dict[str, tuple[Callable[[dict], Any], str, int]] = {
    "no area": (
        _set(("annotations", 0, "bbox"), [3, 3, 0, 5]),
        r"1 annotation without area \(annotations/instances.json, annotation 0 \(images/s0.png\): left 3, top 3, right 3",
        1,
    ),
    "outside": (
        _set(("annotations", 1, "bbox"), [70, 3, 5, 5]),
        r"1 annotation outside of the image \(.*annotation 1",
        1,
    ),
    "not finite": (_set(("annotations", 0, "bbox", 2), float("inf")), "numbers that are missing or not finite", 1),
    "far": (_set(("annotations", 0, "bbox", 2), 1e300), "numbers that are missing or not finite", 1),
    "text": (_set(("annotations", 0, "bbox"), "x"), "numbers that are missing or not finite", 1),
    "undeclared": (_set(("annotations", 2, "category_id"), 99), "a class that is not declared .*category_id 99", 1),
    "orphan": (_set(("annotations", 2, "image_id"), 99), "an image that is not listed .*annotation 2: image_id 99", 1),
    "image twice": (_set(("images", 1, "id"), 100), "2 records with an id|record with an id that another has", 3),
    "annotation twice": (
        _set(("annotations", 1, "id"), 1),
        r"1 record with an id that another has .*annotation 1: 1\)",
        1,
    ),
    "no image": (_set(("images", 0, "file_name"), "gone.png"), r"1 image that annotations name .*gone\.png", 3),
    "other size": (_set(("images", 0, "height"), 41), r"1 image of another size .*is 40 x 64 .*not 41 x 64", 3),
    "turned": (lambda tree: tree["images"][0].update(height=64, width=40), "not 64 x 40, turned", 3),
    "no name": (_set(("images", 0, "file_name"), 3), "without what the format asks for .*its file_name is 3", 3),
    "no record": (_set(("annotations", 0), 7), "without what the format asks for .*annotation 0: 7", 1),
    "neither": (lambda tree: tree["annotations"][0].pop("bbox"), "neither bbox nor segmentation", 1),
}


@pytest.mark.parametrize("name", COCO_FAULTS)
def test_a_faulty_record_stops_or_is_left_out(name: str, tmp_path: Path) -> None:
    change, says, lost = COCO_FAULTS[name]
    tree = _coco(tmp_path)
    change(tree)
    (tmp_path / "annotations/instances.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=says) as said:
        load(tmp_path, crop=CROP)
    assert "--set data.unreadable=skip" in str(said.value) and "\n" not in str(said.value)
    data = load(tmp_path, crop=CROP, unreadable="skip")
    assert sum(map(len, data.splits.values())) == 15 - lost
    assert any("left out" in text and re.search(says, text) for text in data.warnings)


def test_ids_stay_when_other_objects_are_left_out(tmp_path: Path) -> None:
    tree = _coco(tmp_path)
    tree["annotations"][0]["bbox"] = [0, 0, 0, 0]
    put_json(tmp_path / "annotations/instances.json", tree)
    data = load(tmp_path, crop=CROP, unreadable="skip", val_fraction=0, test_fraction=0)
    assert data.split("train").ids.tolist()[:3] == ["images/s0.png#1", "images/s0.png#2", "images/s1.png#0"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("C:\\Users\\me\\s0.png", "1 image is named by a path outside of the source"),
        ("/home/me/cells/s0.png", "the first: /home/me/cells/s0.png; found by name"),
        ("../../s0.png", "named by a path outside"),
        ("images/s0.png", None),
        ("../images/s0.png", None),
        ("s0.jpg", None),
    ],
)
def test_names_of_other_places_are_found_in_the_source_alone(name: str, says: str | None, tmp_path: Path) -> None:
    tree = _coco(tmp_path / "set")
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "s0.png")  # outside of the source
    tree["images"][0]["file_name"] = name
    put_json(tmp_path / "set/annotations/instances.json", tree)
    data = load(tmp_path / "set", crop=CROP, val_fraction=0, test_fraction=0)
    assert data.split("train").ids[0] == "images/s0.png#0"
    assert says is None or any(says in text for text in data.warnings)
    (tmp_path / "set/images/s0.png").unlink()
    with pytest.raises(DataError, match="1 image that annotations name and that cannot be found"):
        load(tmp_path / "set", crop=CROP)


def test_a_name_that_several_files_have_is_refused_unless_the_split_tells(tmp_path: Path) -> None:
    make_export(tmp_path, "coco")
    for split, other in (("train", "val"), ("val", "train")):
        for path in sorted((tmp_path / f"images/{split}").glob("s*.png")):
            copy = tmp_path / f"images/{other}" / path.name
            if not copy.exists():
                Image.new("RGB", (WIDTH, HEIGHT)).save(copy)
    assert load(tmp_path, crop=CROP).split("val").ids.tolist()[0].startswith("images/val/s3.png")
    (tmp_path / "images/train").rename(tmp_path / "images/one")
    (tmp_path / "images/val").rename(tmp_path / "images/two")
    with pytest.raises(
        DataError, match=r"4 images of whose name there are several .*images/one/s0.png and images/two/s0.png"
    ):
        load(tmp_path, crop=CROP)


def test_an_image_in_two_splits_is_refused(tmp_path: Path) -> None:
    found = make_export(tmp_path, "coco")
    put_json(tmp_path / "annotations/instances_val2017.json", coco(found[2:4]))
    with pytest.raises(DataError, match=r"s2\.png is both in"):
        load(tmp_path, crop=CROP)


def test_a_box_beyond_the_border_is_cut_there(tmp_path: Path) -> None:
    tree = _coco(tmp_path)
    tree["annotations"][0]["bbox"] = [-10, -10, 20, 30]
    put_json(tmp_path / "annotations/instances.json", tree)
    data = load(tmp_path, crop={"margin": 0, "size": "box"}, val_fraction=0, test_fraction=0)
    assert data.split("train").sizes[0].tolist() == [20, 10]
    assert any("1 annotation reaches beyond the border of the image and is cut there" in text for text in data.warnings)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<annotations", "is damaged or cannot be read: it is no XML"),
        ("", "it is no XML"),
        ('<!DOCTYPE a [<!ENTITY b "ccc">]><annotations>&b;</annotations>', "document type"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotations/>', "document type"),
        ("<a>" * 100, "nested too deeply"),
        ("<other/>", "is no export of a labelling tool"),
    ],
)
def test_xml_is_parsed_with_care(text: str, says: str, tmp_path: Path) -> None:
    make_export(tmp_path, "cvat")
    (tmp_path / "annotations.xml").write_text(text)
    with pytest.raises(RequestError, match=says):
        load(tmp_path / "annotations.xml", crop=CROP)
    with pytest.raises(RequestError):
        load(tmp_path, crop=CROP)


def test_files_that_are_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_export(tmp_path, "coco", splits=False)
    monkeypatch.setattr("petriscope.data.sources.exports.JSON_BYTES", 1000)
    with pytest.raises(RequestError, match=r"instances\.json is larger than 1,000 bytes; is it annotations in JSON"):
        load(tmp_path, crop=CROP)


@pytest.mark.parametrize("tool", ["voc", "labelme"])
def test_one_damaged_file_of_many_stops_or_is_left_out(tool: str, tmp_path: Path) -> None:
    make_export(tmp_path, tool, splits=False)
    path = sorted([*tmp_path.rglob("*.xml"), *tmp_path.rglob("*.json")])[0]
    path.write_text("{")
    with pytest.raises(DataError, match=r"1 annotation file that cannot be parsed \(.*s0"):
        load(tmp_path, crop=CROP)
    data = load(tmp_path, crop=CROP, unreadable="skip")
    assert sum(map(len, data.splits.values())) == 12
    assert any("1 image that the annotations do not name (images/s0.png)" in text for text in data.warnings)


def test_an_unreadable_image_stops_or_its_objects_are_left_out(tmp_path: Path) -> None:
    make_export(tmp_path, "coco", splits=False)
    (tmp_path / "images/s1.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"1 image cannot be read: images/s1\.png"):
        load(tmp_path, crop=CROP)
    data = load(tmp_path, crop=CROP, unreadable="skip", val_fraction=0, test_fraction=0)
    ids = data.split("train").ids.tolist()
    assert len(ids) == 12 and not any("s1.png" in each for each in ids)


def test_yolo_lines_are_checked(tmp_path: Path) -> None:
    make_export(tmp_path, "yolo", splits=False)
    lines = [
        "0 0.5 0.5 0.2 0.2",
        "2 0.5 0.5 0.2 0.2",
        "0 0.5 nan 0.2 0.2",
        "0 0.5 0.5 0.2",
        "0 0.5 0.5 0.2 0.2 0.9",
        "x 1 1 1 1",
    ]
    (tmp_path / "labels/s0.txt").write_text("\n".join(lines))
    with pytest.raises(
        DataError, match=r"cannot use 2 records without what the format asks for .*1 annotation of a class"
    ):
        load(tmp_path, crop=CROP)
    assert sum(map(len, load(tmp_path, crop=CROP, unreadable="skip").splits.values())) == 13


def test_label_studio_brushes_are_refused_in_a_sentence(tmp_path: Path) -> None:
    make_export(tmp_path, "label studio", splits=False)
    tasks = json.loads((tmp_path / "export.json").read_text())
    value = {"format": "rle", "rle": [0, 1], "brushlabels": [CLASSES[0]]}
    tasks[0]["annotations"][0]["result"][0] = {"type": "brushlabels", "value": value}
    put_json(tmp_path / "export.json", tasks)
    with pytest.raises(
        DataError, match="drawn with a brush, whose encoding is not read; export them as polygons, or as COCO"
    ):
        load(tmp_path, crop=CROP)


def test_masks_in_runs_are_those_of_pycocotools(tmp_path: Path) -> None:
    mask_api = pytest.importorskip("pycocotools.mask")
    tree = _coco(tmp_path)
    rng = np.random.default_rng(0)
    masks = [(rng.random((HEIGHT, WIDTH)) < 0.3).astype(np.uint8) for _ in range(5)]
    for place, each in enumerate(tree["annotations"]):
        encoded = mask_api.encode(np.asfortranarray(masks[place // 3]))
        text = {"size": encoded["size"], "counts": encoded["counts"].decode()}
        runs = np.diff(
            [0, *np.flatnonzero(np.diff(np.r_[0, masks[place // 3].T.reshape(-1)])), HEIGHT * WIDTH]
        ).tolist()
        each["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": runs} if place % 2 else text
        each["category_id"] = 7
    tree["categories"] = tree["categories"][:1]
    put_json(tmp_path / "annotations/instances.json", tree)
    data = load(tmp_path, val_fraction=0, test_fraction=0)
    assert np.array_equal(data.split("train").targets, np.array(masks))


@pytest.mark.parametrize("counts", ["", "\x7f", "zzzz", "1", "P" * 40, [5, -1], [1, 2], ["x"], None, 3])
def test_damaged_runs_are_refused(counts: Any, tmp_path: Path) -> None:
    tree = _coco(tmp_path)
    tree["annotations"][0]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": counts}
    put_json(tmp_path / "annotations/instances.json", tree)
    with pytest.raises(DataError, match=r"annotation 0"):
        load(tmp_path)


def test_later_objects_lie_over_earlier_ones_and_boxes_alone_are_unlabeled(tmp_path: Path) -> None:
    tree = _coco(tmp_path, outlines=True)
    for place, each in enumerate(tree["annotations"]):
        each["segmentation"] = [[0, 0, 20, 0, 20, 20, 0, 20]] if place % 3 == 0 else [[10, 0, 30, 0, 30, 20, 10, 20]]
        each["category_id"] = 7 + (place % 3 > 0)
        if place % 3 == 2:
            each["segmentation"], each["bbox"] = [], [40, 30, 10, 10]
    put_json(tmp_path / "annotations/instances.json", tree)
    data = load(tmp_path, val_fraction=0, test_fraction=0)
    mask = data.split("train").targets[0]
    assert (mask[:20, :10] == 1).all() and (mask[:20, 10:30] == 2).all() and (mask[30:, 40:50] == 255).all()
    assert (mask[20:30] == 0).all()
    assert any("5 objects lie over objects of other classes" in text for text in data.warnings)
    assert any("5 objects have a box and no outline" in text for text in data.warnings)
    unlabeled = load(tmp_path, val_fraction=0, test_fraction=0, ignore="background")
    assert unlabeled.classes == CLASSES and (unlabeled.split("train").targets[0, 20:30] == 255).all()


@given(points=st.lists(st.tuples(st.floats(-5, 25), st.floats(-5, 25)), min_size=3, max_size=9))
def test_a_pixel_is_inside_if_its_center_is(points: list[tuple[float, float]]) -> None:
    ring = np.array(points)
    place, inside = inside_rings([ring], 17, 19)
    found = np.zeros((17, 19), bool)
    found[place] = inside
    truth = np.zeros_like(found)
    for (x, y), (to_x, to_y) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        for row in range(17):
            if (y <= row + 0.5) != (to_y <= row + 0.5):
                at = x + (row + 0.5 - y) / (to_y - y) * (to_x - x)
                truth[row] ^= np.arange(19) + 0.5 >= at
    assert (found == truth).mean() > 0.99 and found.sum() - truth.sum() in range(-2, 3)


def test_lists_of_splits_are_those_of_masks_too(tmp_path: Path) -> None:
    found = make_export(tmp_path, "voc", splits=False)
    (tmp_path / "images").rename(tmp_path / "JPEGImages")
    (tmp_path / "SegmentationClass").mkdir()
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:5] = 1
    for picture in found[:-1]:
        Image.fromarray(mask).save(tmp_path / "SegmentationClass" / picture.name)
    (tmp_path / "JPEGImages/s4.png").unlink()
    put_text(tmp_path / "ImageSets/Segmentation/train.txt", "s0\ns1\n")
    put_text(tmp_path / "ImageSets/Segmentation/val.txt", "s2\n")
    data = load(tmp_path)
    assert data.task.dense and {name: len(part) for name, part in data.splits.items()} == {"train": 2, "val": 1}
    assert "1 image in no list of ImageSets/Segmentation (JPEGImages/s3.png)" in " ".join(data.warnings)


@pytest.mark.parametrize("tool", ["coco", "voc", "yolo"])
def test_splits_in_folders_with_annotations_beside_the_images(tool: str, tmp_path: Path) -> None:
    found = make_export(tmp_path / "as written", tool)
    wanted = load(tmp_path / "as written", crop=CROP, size=16)
    for index, each in enumerate(found):
        split = "valid" if each.split == "val" else each.split
        folder = tmp_path / f"set/{split}"
        save_image(folder / ("images" if tool == "yolo" else ".") / each.name, pixels(index))
        if tool == "voc":
            put_text(folder / f"s{index}.xml", voc(each))
        elif tool == "yolo":
            text = (tmp_path / f"as written/labels/{each.split}/s{index}.txt").read_text()
            put_text(folder / f"labels/s{index}.txt", text)
    if tool == "coco":
        for split in ("train", "val", "test"):
            tree = coco([each for each in found if each.split == split])
            put_json(tmp_path / f"set/{'valid' if split == 'val' else split}/_annotations.coco.json", tree)
    if tool == "yolo":
        splits = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
        put_text(tmp_path / "set/data.yaml", f"{splits}names: {{0: {CLASSES[0]}, 1: {CLASSES[1]}}}\n")
    data = load(tmp_path / "set", crop=CROP, size=16)
    assert data.fingerprint == wanted.fingerprint and not any("left out" in text for text in data.warnings)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ('<mask label="platelet" rle="0, 6" left="2" top="3" width="3" height="2"/>', None),
        ('<mask label="platelet" rle="0, 7" left="2" top="3" width="3" height="2"/>', "its runs do not fill"),
        ('<mask label="platelet" rle="0,1e22" left="0" top="0" width="1e11" height="1e11"/>', "its runs do not fill"),
        ('<mask label="platelet" left="0" top="0" width="1" height="1"/>', "missing or not finite"),
        ('<polygon label="platelet" points="1,1;5,5"/>', "1 outline of fewer than three points .*2 points"),
        ('<polygon label="platelet" points="1,1;5,5;9"/>', "fewer than three points"),
        ('<polygon label="platelet" points="1,1;5,5;9,9"/>', None),
        ('<polygon label="other" points="1,1;5,5;9,1"/>', "a class that is not declared .*other"),
        ('<cuboid label="platelet"/>', None),
        ('<blob label="platelet"/>', "it is a 'blob', which is not read"),
        ('<box label="platelet" xtl="2" ytl="3" xbr="2" ybr="9"/>', "1 annotation without area"),
    ],
)
def test_shapes_of_cvat(shape: str, says: str | None, tmp_path: Path) -> None:
    make_export(tmp_path, "cvat", splits=False, outlines=True)
    text = (tmp_path / "annotations.xml").read_text()
    put_text(tmp_path / "annotations.xml", text.replace("</image>", f"{shape}</image>", 1))
    if says is not None:
        with pytest.raises(DataError, match=says):
            load(tmp_path)
    data = load(tmp_path, unreadable="skip", val_fraction=0, test_fraction=0)
    if "0, 6" in shape:
        assert (data.split("train").targets[0, 3:5, 2:5] == data.classes.index("platelet")).all()


def test_ellipses_of_cvat_are_turned(tmp_path: Path) -> None:
    make_export(tmp_path / "set", "cvat", splits=False, outlines=True)
    text = (tmp_path / "set/annotations.xml").read_text()
    form = '<ellipse label="platelet" cx="10" cy="8" rx="{}" ry="{}" rotation="{}" z_order="9"/></image>'
    masks = []
    for numbers in ((6, 2, 0), (2, 6, 90), (6, 2, 30), (6, 2, 210), (6, 2, -30)):
        put_text(tmp_path / "set/annotations.xml", text.replace("</image>", form.format(*numbers), 1))
        masks.append(load(tmp_path / "set", val_fraction=0, test_fraction=0).split("train").targets[0])
    np.testing.assert_array_equal(masks[0], masks[1])
    np.testing.assert_array_equal(masks[2], masks[3])
    number = masks[0][8, 10]
    assert (
        masks[0][8, 14] == number != masks[2][8, 14] and masks[2][10, 13] == number
    )  # clockwise: to the right is down
    assert masks[4][5, 13] == number != masks[4][10, 13]


def test_keypoints_of_yolo_are_no_polygons(tmp_path: Path) -> None:
    make_export(tmp_path / "set", "yolo", splits=False)
    data = load(tmp_path / "set", crop=CROP)
    put_text(tmp_path / "set/data.yaml", f"names: {json.dumps(CLASSES)}\nkpt_shape: [3, 2]\n")
    for path in (tmp_path / "set/labels").glob("*.txt"):
        lines = [f"{line} 0.1 0.1 0.9 0.2 0.4 0.9" for line in path.read_text().splitlines() if line]
        path.write_text("\n".join(lines))
    again = load(tmp_path / "set", crop=CROP)
    assert again.fingerprint == data.fingerprint and any("keypoints" in text for text in again.warnings)
    path.write_text(f"{lines[0]} 0.5")
    with pytest.raises(DataError, match="11 numbers, not 4 of a box and 6 of keypoints"):
        load(tmp_path / "set", crop=CROP)


@pytest.mark.parametrize("outlines", [False, True])
def test_shares_of_the_sides_are_no_pixels(outlines: bool, tmp_path: Path) -> None:
    make_export(tmp_path / "set", "coco", splits=False, outlines=outlines)
    path = next((tmp_path / "set").rglob("*.json"))
    tree = json.loads(path.read_text())
    for each in tree["annotations"]:
        each["bbox"] = [value / 100 for value in each["bbox"]]
        if outlines:
            each["segmentation"] = [[value / 100 for value in part] for part in each["segmentation"]]
    put_json(path, tree)
    with pytest.raises(DataError, match=r"COCO.*all coordinates are from 0 to 0\..*multiply them by width and height"):
        load(tmp_path / "set", crop=CROP)


def test_images_in_which_nothing_is_drawn_are_said(tmp_path: Path) -> None:
    make_export(tmp_path / "set", "coco", splits=False, outlines=True)
    path = next((tmp_path / "set").rglob("*.json"))
    tree = json.loads(path.read_text())
    kept = [each for each in tree["annotations"] if each["image_id"] != tree["images"][0]["id"]]
    put_json(path, {**tree, "annotations": kept})
    said = [text for text in load(tmp_path / "set").warnings if "nothing is drawn" in text]
    assert len(said) == 1 and "in 1 image nothing is drawn" in said[0] and "all of its pixels are background" in said[0]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    make_export(tmp_path, "yolo", splits=False)
    if not hasattr(os, "mkfifo"):
        pytest.skip("the system has no named pipes")
    os.mkfifo(tmp_path / "x.json")
    os.mkfifo(tmp_path / "x.yaml")
    (tmp_path / "labels/s0.txt").unlink()
    os.mkfifo(tmp_path / "labels/s0.txt")
    with pytest.raises(DataError, match=r"1 annotation file that cannot be parsed .*no regular file"):
        load(tmp_path, crop=CROP)


def test_crops_are_cut_from_the_upright_image(tmp_path: Path) -> None:
    make_export(tmp_path / "plain", "coco", splits=False)
    shutil.copytree(tmp_path / "plain", tmp_path / "turned")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    for path in (tmp_path / "turned/images").iterdir():
        with Image.open(path) as image:
            image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    plain, turned = (load(tmp_path / name, crop=CROP, size=16) for name in ("plain", "turned"))
    assert plain.fingerprint == turned.fingerprint


def test_domains_may_have_boxes_and_class_folders(tmp_path: Path) -> None:
    make_export(tmp_path / "smear", "voc")
    for number in range(6):
        for label in CLASSES:
            save_image(tmp_path / f"cells/{label}/{number}.png", pixels(number + 10)[:16, :16])
    sources = {"smear": str(tmp_path / "smear"), "cells": str(tmp_path / "cells")}
    data = load_dataset(DataSection.model_validate({"sources": sources, "crop": CROP, "size": 16}))
    assert data.classes == tuple(sorted(CLASSES)) and sum(map(len, data.splits.values())) == 15 + 12
    assert any("data.crop has no effect" in text and "cells" in text for text in data.warnings)
    assert "smear/images/train/s0.png#0" in data.split("train").ids


def test_a_damaged_task_of_label_studio_is_one_record(tmp_path: Path) -> None:
    make_export(tmp_path, "label studio", splits=False)
    tasks = json.loads((tmp_path / "export.json").read_text())
    put_json(tmp_path / "export.json", [7, {"data": 3}, *tasks])
    with pytest.raises(DataError, match=r"2 records without what the format asks for \(export.json, task 0: 7\)"):
        load(tmp_path, crop=CROP)
    assert sum(map(len, load(tmp_path, crop=CROP, unreadable="skip").splits.values())) == 15


def test_crops_are_mapped_or_resident_and_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_export(tmp_path, "cvat")
    mapped, resident = (load(tmp_path, crop=CROP, size=16, memory=memory) for memory in ("mapped", "resident"))
    assert mapped.fingerprint == resident.fingerprint
    assert mapped.split("train").mapped and not resident.split("train").mapped
    other = load(tmp_path, crop={"margin": 0.5}, size=16)
    assert other.fingerprint != mapped.fingerprint

    def refuse(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr("petriscope.data.decode_crops.read_image", refuse)
    assert load(tmp_path, crop=CROP, size=16).fingerprint == mapped.fingerprint
    Image.fromarray(pixels(9)).save(tmp_path / "images/train/s0.png")
    with pytest.raises(AssertionError, match="decoded again"):
        load(tmp_path, crop=CROP, size=16)


def test_two_categories_of_one_name_are_said(tmp_path: Path) -> None:
    save_pictures(tmp_path, pictures(splits=False))
    tree = coco(pictures(splits=False))
    tree["categories"] = [
        {"id": 7, "name": "cell"},
        {"id": 8, "name": "cell"},
        {"id": 9, "name": "other"},
        {"id": 1, "name": "cell"},
    ]
    tree["annotations"][0]["category_id"] = 9
    put_json(tmp_path / "annotations/instances.json", tree)
    data = load_dataset(DataSection.model_validate({"source": str(tmp_path), "crop": {}}))
    assert set(data.classes) == {"cell", "other"}
    (said,) = [text for text in data.warnings if "both called" in text]
    assert "the categories 7 and 8 are both called cell, and were read as one class" in said  # 1 does not occur


def test_images_that_exif_turns_are_said(tmp_path: Path) -> None:
    found = pictures(splits=False, outlines=True)
    save_pictures(tmp_path, found)
    write_coco(tmp_path, found)
    path = tmp_path / found[1].id
    exif = Image.Exif()
    exif[274] = 3  # upside down, so that height and width stay
    with Image.open(path) as image:
        image.load()
        image.save(path, exif=exif)
    data = load_dataset(DataSection(source=str(tmp_path)))
    (said,) = [text for text in data.warnings if "EXIF" in text]
    assert said.startswith(
        f"1 image is turned upright by the EXIF tag, such as {found[1].id}; annotations are taken as drawn"
    )


def test_masks_that_are_called_as_their_images_are_no_images(tmp_path: Path) -> None:
    folder, found = tmp_path / "data", pictures(splits=False)
    save_pictures(folder, found)
    put_json(folder / "instances.json", coco(found))
    plain = load_dataset(DataSection.model_validate({"source": str(folder), "crop": {}}))
    for picture in found:
        save_image(folder / picture.id.replace("images", "masks"), np.zeros((HEIGHT, WIDTH, 1), np.uint8))
    data = load_dataset(DataSection.model_validate({"source": str(folder), "crop": {}}))
    assert data.fingerprint == plain.fingerprint and any(
        f"{len(found)} images that the annotations" in text for text in data.warnings
    )
