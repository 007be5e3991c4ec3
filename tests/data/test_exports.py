"""Exports of labelling tools: the same images with the same boxes and polygons are the same data in every format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_exports import CLASSES, HEIGHT, SPLITS, WIDTH, WRITERS, make_export, pixels
from small_sources import load

from petriscope.core.errors import DataError, RequestError
from petriscope.core.recipe import CropSection
from petriscope.data.background import background_colors
from petriscope.data.sources.exports.crops import window

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
