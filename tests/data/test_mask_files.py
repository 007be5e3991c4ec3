"""Mask files: however class numbers are stored, the same masks are read, or a sentence says how to store them."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image
from small_sources import load, make_mask_npz, make_mask_pile, masks, save_image, some_images

from petriscope.audit import audit
from petriscope.core.errors import DataError, RequestError
from petriscope.core.masks import IGNORE
from petriscope.core.recipe import DataSection, data_section
from petriscope.data import Dataset
from petriscope.data.aligned import load_aligned
from petriscope.tasks import find_task

COLORS = np.array([[0, 0, 0], [255, 0, 0], [0, 128, 255]], dtype=np.uint8)
COUNT = 12


def numbers(unlabeled: bool = True) -> np.ndarray:
    out = masks(COUNT)
    return out if unlabeled else np.where(out == IGNORE, 0, out).astype(np.uint8)


def make_set(folder: Path, stored: np.ndarray | list[Image.Image], suffix: str = ".png", **how: Any) -> Path:
    """A folder of images and masks without splits; masks are arrays or Pillow's images."""
    (folder / "masks").mkdir(parents=True)
    for index, (image, mask) in enumerate(zip(some_images(COUNT), stored, strict=True)):
        save_image(folder / "images" / f"i{index:02}.png", image)
        (mask if isinstance(mask, Image.Image) else Image.fromarray(mask)).save(
            folder / "masks" / f"i{index:02}{suffix}", **how
        )
    return folder


def whole(data: Dataset) -> np.ndarray:
    """The masks of all splits, in the order of the files."""
    parts = data.splits.values()
    order = np.argsort(np.concatenate([part.ids for part in parts]))
    return np.concatenate([part.targets for part in parts])[order]


def png(mask: np.ndarray, bits: int) -> Image.Image:
    """A gray PNG of few bits per pixel, which Pillow reads but does not write."""
    packed = [np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits :].reshape(-1)).tobytes() for row in mask]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", mask.shape[1], mask.shape[0], bits, 0, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in packed))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def merged(mask: np.ndarray, *alpha: int) -> Image.Image:
    bands = [mask, mask, mask, *(np.full_like(mask, value) for value in alpha)]
    return Image.fromarray(np.stack(bands, -1))


STORED: dict[str, tuple[str, Callable[[np.ndarray], Any]]] = {
    "gray": (".png", Image.fromarray),
    "RGB of equal channels": (".png", merged),
    "RGBA without transparency": (".png", lambda mask: merged(mask, 255)),
    "gray and alpha": (".png", lambda mask: merged(mask, 255).convert("LA")),
    "16 bits": (".png", lambda mask: Image.fromarray(mask.astype(np.uint16))),
    "32 bits": (".tif", lambda mask: Image.fromarray(mask.astype(np.int32))),
    "whole floats": (".tif", lambda mask: Image.fromarray(mask.astype(np.float32))),
    "TIFF": (".tif", Image.fromarray),
    "BMP": (".bmp", Image.fromarray),
    "GIF": (".gif", Image.fromarray),
    "an encoder's palette": (
        ".png",
        lambda mask: indexed(np.minimum(mask, 3), np.array([0, 1, 2, 255], np.uint8).repeat(3)),
    ),
    "a palette to look at": (".png", lambda mask: indexed(mask, np.arange(256, dtype=np.uint8)[::-1].repeat(3))),
}


@pytest.mark.parametrize("kind", STORED)
def test_the_same_numbers_in_another_file_are_the_same_masks(kind: str, tmp_path: Path) -> None:
    suffix, make = STORED[kind]
    data = load(make_set(tmp_path / "set", [make(mask) for mask in numbers()], suffix))
    assert np.array_equal(whole(data), numbers()) and data.classes == ("0", "1", "2")


@pytest.mark.parametrize(("bits", "classes"), [(1, 2), (2, 4), (4, 11)])
def test_gray_files_of_few_bits_keep_their_numbers(bits: int, classes: int, tmp_path: Path) -> None:
    stored = masks(COUNT, classes=classes)
    stored[stored == IGNORE] = 0
    folder = make_set(tmp_path / "set", stored)
    for index, mask in enumerate(stored):
        (folder / "masks" / f"i{index:02}.png").write_bytes(png(mask, bits))
    assert np.array_equal(whole(load(folder)), stored)


def indexed(mask: np.ndarray, colors: np.ndarray = COLORS) -> Image.Image:
    image = Image.fromarray(mask)
    image.putpalette(colors.tobytes())
    return image


def test_an_encoders_palette_per_file_is_not_taken_for_indices(tmp_path: Path) -> None:
    """A file of 0 and 255 alone would be read as 0 and 1."""
    stored = [Image.fromarray(mask) for mask in numbers()]
    stored[3] = indexed((numbers()[3] > 0).astype(np.uint8), np.array([0, 255], np.uint8).repeat(3))
    with pytest.raises(DataError, match=r"i03\.png is an indexed image.*i00\.png a gray image"):
        load(make_set(tmp_path / "set", stored))


class TestColors:
    TABLE = tuple(map(tuple, COLORS.tolist()))

    @pytest.mark.parametrize("make", [lambda mask: Image.fromarray(COLORS[mask]), indexed])
    def test_a_given_table(self, make: Callable[[np.ndarray], Image.Image], tmp_path: Path) -> None:
        folder = make_set(tmp_path / "set", [make(mask) for mask in numbers(False)])
        data = load(folder, mask_values=self.TABLE)
        assert np.array_equal(whole(data), numbers(False)) and data.classes == ("#000000", "#ff0000", "#0080ff")
        turned = load(folder, mask_values=self.TABLE[::-1], classes=("sky", "roof", "rest"), ignore="rest")
        assert np.array_equal(whole(turned), np.array([IGNORE, 1, 0])[numbers(False)]) and turned.classes == (
            "sky",
            "roof",
        )

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("labelmap.txt", "# label:color_rgb:parts:actions\nground:0,0,0::\nroof:255,0,0::\nsky:0,128,255::\n"),
            ("class_dict.csv", "name,r,g,b\nground, 0, 0, 0\nroof,255,0,0\nsky,0,128,255\n"),
        ],
    )
    def test_a_table_in_the_folder(self, name: str, text: str, tmp_path: Path) -> None:
        folder = make_set(tmp_path / "set", [Image.fromarray(COLORS[mask]) for mask in numbers(False)])
        (folder / name).write_text(text)
        data = load(folder)
        assert np.array_equal(whole(data), numbers(False)) and data.classes == ("ground", "roof", "sky")

    def test_the_index_255_is_unlabeled_whatever_its_color(self, tmp_path: Path) -> None:
        colors = np.full((256, 3), (224, 224, 192), dtype=np.uint8)
        colors[:3] = COLORS
        folder = make_set(tmp_path / "set", [indexed(mask, colors) for mask in numbers()])
        assert np.array_equal(whole(load(folder, mask_values=self.TABLE)), numbers())

    def test_without_a_table_the_colors_are_named(self, tmp_path: Path) -> None:
        folder = make_set(tmp_path / "set", [Image.fromarray(COLORS[mask]) for mask in numbers(False)])
        with pytest.raises(DataError, match=r"3 colors.*mask_values=\[\[0,0,0\],\[0,128,255\],\[255,0,0\]\]"):
            load(folder)

    def test_a_color_beside_the_table(self, tmp_path: Path) -> None:
        folder = make_set(tmp_path / "set", [Image.fromarray(COLORS[mask]) for mask in numbers(False)])
        with pytest.raises(
            DataError, match=r"masks/i0\d\.png has the color #0080ff, which is not in data\.mask_values"
        ):
            load(folder, mask_values=self.TABLE[:2])

    def test_an_array_in_color(self, tmp_path: Path) -> None:
        arrays = {
            f"{split}_masks": COLORS[masks(count) % 3] for split, count in (("train", 12), ("val", 4), ("test", 4))
        }
        source = make_mask_npz(tmp_path, **arrays)
        assert np.array_equal(load(source, mask_values=self.TABLE).split("train").targets, masks(12) % 3)
        with pytest.raises(DataError, match=r"data\.mask_values"):
            load(source)


@pytest.mark.parametrize(
    "value", ["abc", 5, [], [1, 1], [-1], [0.5], [True], [0, [1, 2, 3]], [[1, 2]], [[300, 0, 0]], {"a": 1}]
)
def test_a_table_that_is_none(value: Any) -> None:
    with pytest.raises(RequestError, match=r"^--set: data\.mask_values: it must list a number per class[^\n]*$"):
        data_section("x", [f"data.mask_values={json.dumps(value)}"])


def test_palettes_that_disagree(tmp_path: Path) -> None:
    stored = [indexed(mask, COLORS if index % 2 else COLORS[[0, 2, 1]]) for index, mask in enumerate(numbers(False))]
    folder = make_set(tmp_path / "set", stored)
    with pytest.raises(DataError, match=r"index 1 is #0080ff in .*i00\.png and #ff0000 in .*i01\.png"):
        load(folder)
    swap = np.array([[0, 2, 1], [0, 1, 2]])
    by_color = np.stack([swap[index % 2][mask] for index, mask in enumerate(numbers(False))])
    assert np.array_equal(whole(load(folder, mask_values=TestColors.TABLE)), by_color)
    assert np.array_equal(whole(load(folder, mask_values=(0, 1, 2))), numbers(False))


def smooth(mask: np.ndarray) -> Image.Image:
    return (
        Image.fromarray(mask * 127).resize((5, 4), Image.Resampling.BILINEAR).resize((9, 8), Image.Resampling.BICUBIC)
    )


def through_jpeg(mask: np.ndarray) -> Image.Image:
    file = io.BytesIO()
    Image.fromarray(mask * 127).save(file, "JPEG", quality=60)
    return Image.open(file).convert("L")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda mask: Image.fromarray(mask * 100), r"3 values: 0, 100, 200.*mask_values=\[0,100,200\]"),
        (lambda mask: Image.fromarray(mask.astype(np.uint16) * 1000), r"first in .*i00.*mask_values=\[0,1000,2000\]"),
        (lambda mask: Image.fromarray(mask + 1), r"3 values: 1, 2, 3\. .*count from 0"),
        (smooth, "JPEG, or resized smoothly"),
        (through_jpeg, "JPEG, or resized smoothly"),
        (lambda mask: merged(mask, 100), "transparent"),
        (lambda mask: merged(mask).convert("CMYK"), "CMYK image"),
        (lambda mask: Image.fromarray(mask + np.float32(0.5)), "not whole numbers"),
        (lambda mask: Image.fromarray(mask.astype(np.int32) - 1), "value -1"),
    ],
)
def test_other_values_are_named(make: Callable[[np.ndarray], Image.Image], says: str, tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", [make(mask) for mask in numbers(False)], ".tif")
    with pytest.raises(DataError, match=says):
        load(folder)


def test_a_jpeg_is_known_by_its_content(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", numbers(), format="JPEG")
    with pytest.raises(DataError, match=r"12 images or masks.*is a JPEG image.*and 9 more"):
        load(folder)


def test_a_mask_of_several_pages(tmp_path: Path) -> None:
    pages = [Image.fromarray(mask) for mask in numbers()]
    folder = make_set(tmp_path / "set", pages, ".tif", save_all=True, append_images=pages[:2])
    with pytest.raises(DataError, match="3 pages"):
        load(folder)


def test_numbers_of_objects_are_not_taken_for_classes_in_silence(tmp_path: Path) -> None:
    def warned(tops: list[int], folder: Path) -> bool:
        stored = np.stack([np.arange(72, dtype=np.uint8).reshape(8, 9) % (top + 1) for top in tops])
        return any("numbers of objects" in warning for warning in load(make_set(folder, stored)).warnings)

    assert warned([*range(7), 6, 6, 6, 6, 6], tmp_path / "objects")
    assert not warned([3] * 12, tmp_path / "classes")


def test_masks_of_images_that_are_turned_are_pointed_at(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", numbers())
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    for file in (folder / "images").iterdir():
        with Image.open(file) as image:
            image.save(file, exif=exif)
    assert any(re.search("12 images are turned.*i00", warning) for warning in load(folder).warnings)
    for file, mask in zip(sorted((folder / "masks").iterdir()), numbers(), strict=True):
        Image.fromarray(np.ascontiguousarray(mask[::-1, ::-1])).save(file, exif=exif)
    data = load(folder)
    assert np.array_equal(whole(data), numbers()) and not any("turned" in warning for warning in data.warnings)


class TestBinary:
    @pytest.mark.parametrize("options", [{}, {"classes": ("ground", "cell")}])
    def test_0_and_255_are_two_classes_and_it_is_said(self, options: Any, tmp_path: Path) -> None:
        stored = (numbers(False) > 0).astype(np.uint8)
        data = load(make_set(tmp_path / "set", stored * 255), **options)
        assert np.array_equal(whole(data), stored) and data.classes == options.get("classes", ("0", "255"))
        assert any("0 and 255 alone" in warning for warning in data.warnings)

    def test_unless_255_is_said_to_mean_unlabeled(self, tmp_path: Path) -> None:
        folder = make_set(tmp_path / "set", (numbers(False) > 0).astype(np.uint8) * 255)
        with pytest.raises(DataError, match="only one class"):
            load(folder, ignore=255)

    def test_a_model_of_more_classes_is_told_that_255_is_unlabeled(self, tmp_path: Path) -> None:
        stored = (numbers(False) > 0).astype(np.uint8) * 255
        section = DataSection(source=str(make_set(tmp_path / "set", stored)))
        for classes, unlabeled in ((("a", "b"), 0), (("a", "b", "c"), (stored == 255).sum())):
            images, said = load_aligned(section, "test", classes, find_task("segmentation"))[:2]
            assert (images.targets == IGNORE).sum() == unlabeled
            assert any("0 and 255 alone" in each for each in said)

    @pytest.mark.parametrize("ignore", [0, "background"])
    def test_where_the_ground_is_left_out_no_class_is_left(self, ignore: str | int, tmp_path: Path) -> None:
        folder = make_set(tmp_path / "set", (numbers(False) > 0).astype(np.uint8) * 255)
        with pytest.raises(DataError, match=r"class 0 alone, which data\.ignore leaves out"):
            load(folder, ignore=ignore)

    def test_files_of_both_kinds_are_not_mixed_in_silence(self, tmp_path: Path) -> None:
        stored = (numbers(False) > 0).astype(np.uint8)
        stored[::2] *= 255
        folder = make_set(tmp_path / "set", stored)
        with pytest.raises(DataError, match=r"6 masks have the value 255.*i00\.png.*6 others the value 1.*i01\.png"):
            load(folder)
        assert np.array_equal(whole(load(folder, ignore=255)), np.where(stored == 255, IGNORE, stored))
        with pytest.raises(RequestError, match="has 2 values"):
            load(folder, mask_values=(0, 1), classes=("a", "b", "c"))


@given(values=st.sets(st.integers(0, 300) | st.integers(0, 12), min_size=2, max_size=9), order=st.randoms())
def test_any_values_are_read_by_a_table_and_without_one_read_right_or_named(
    values: set[int], order: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    table = sorted(values)
    order.shuffle(table)
    places = np.arange(12 * 72).reshape(12, 8, 9) % len(table)
    stored = np.array(table)[places]
    rest = {f"{split}_{kind}": None for split in ("val", "test") for kind in ("images", "labels", "masks")}
    source = make_mask_npz(tmp_path_factory.mktemp("set"), train_masks=stored, **rest)
    assert np.array_equal(_in_order(load(source, mask_values=tuple(table))), places)
    try:
        data = load(source)
    except DataError as error:
        assert "only one class" in str(error) or f"values: {', '.join(map(str, sorted(values)))}" in str(error)
    else:
        expected = stored // 255 if values == {0, 255} else stored
        assert {*values} - {255} == {*range(len({*values} - {255}))}
        assert np.array_equal(_in_order(data), expected)


def _in_order(data: Dataset) -> np.ndarray:
    parts = data.splits.values()
    at = np.concatenate([np.char.partition(part.ids, "/")[:, 2].astype(int) for part in parts])
    return np.concatenate([part.targets for part in parts])[np.argsort(at)]


class TestAlone:
    """Images and masks that lack one another, and masks that cannot be read."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        make_mask_pile(tmp_path / "set")
        (tmp_path / "set" / "masks" / "train_03.png").unlink()
        (tmp_path / "set" / "images" / "val_01.png").unlink()
        return tmp_path / "set"

    def test_they_are_counted_and_named(self, folder: Path) -> None:
        with pytest.raises(
            DataError, match=r"2 images.*train_03\.png has no mask.*val_01\.png has no image.*unreadable=skip"
        ):
            load(folder)

    def test_they_are_left_out_where_asked_and_it_is_said(self, folder: Path) -> None:
        (folder / "masks" / "test_02.png").write_bytes(b"\x89PNG")
        data = load(folder, unreadable="skip")
        assert sum(map(len, data.splits.values())) == 17
        assert any("train_03.png has no mask" in warning for warning in data.warnings)
        assert any("test_02.png cannot be read as a mask" in warning for warning in data.warnings)

    def test_an_audit_finds_and_drops_them(self, folder: Path, tmp_path: Path) -> None:
        (folder / "masks" / "test_02.png").write_bytes(b"\x89PNG")
        (folder / "masks" / "train_05.png").write_bytes((folder / "masks" / "train_05.png").read_bytes()[:60])
        found = audit(folder, labels=False, features=None)
        bad = found.table[found.table["finding"].isin(["unreadable", "truncated"])]
        assert sorted(bad["id"]) == ["images/test_02.png", "images/train_03.png", "images/train_05.png"]
        assert all("mask" in evidence for evidence in bad["evidence"])
        assert any("val_01.png has no image" in note for note in found.notes)
        found.write(tmp_path / "audit")
        data = load(folder, audit=str(tmp_path / "audit"))
        assert {entry.id for entry in data.audited} >= {*bad["id"]}


def again(source: Path, **options: Any) -> Any:
    """What a set is read as, or why it is refused."""
    try:
        data = load(source, **options)
    except DataError as error:
        return str(error)
    return data.fingerprint, data.warnings, data.classes


@pytest.mark.parametrize("options", [{}, {"mask_values": [1, 0, 2, 255]}, {"unreadable": "skip"}])
@pytest.mark.parametrize("kind", ["gray", "indexed", "palettes that disagree", "color", "damaged", "above 255"])
def test_masks_from_the_cache_are_those_read(
    kind: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = numbers(unlabeled=False)
    files = [indexed(mask) for mask in stored] if kind.startswith(("indexed", "palettes")) else stored
    source = make_set(tmp_path / "data", files)
    some = sorted(source.rglob("*.png"))[-1]  # of the masks
    if kind == "palettes that disagree":
        indexed(stored[0], COLORS[::-1].copy()).save(some)
    elif kind == "color":
        Image.fromarray(np.arange(stored[0].size * 3, dtype=np.uint8).reshape(*stored[0].shape, 3)).save(some)
    elif kind == "damaged":
        some.write_bytes(some.read_bytes()[:60])
    elif kind == "above 255":
        Image.fromarray(stored[0].astype(np.uint16) + 300).save(some)
    first = again(source, **options)
    if "mask_values" not in options:  # values that are not in the table end the reading, and nothing is kept
        monkeypatch.setattr("petriscope.data.sources.mask_files.read_mask", lambda *_: pytest.fail("it was read again"))
    assert again(source, **options) == first


def test_a_changed_mask_is_noticed_whatever_its_times(tmp_path: Path) -> None:
    source = make_set(tmp_path / "data", numbers())
    some = sorted(source.rglob("*.png"))[-1]
    found = []
    for value in (0, 1):
        Image.fromarray(np.full(numbers()[0].shape, value, np.uint8)).save(some, format="BMP")
        os.utime(some, (1e9, 1e9))
        found.append(load(source).fingerprint)
    assert found[0] != found[1]
