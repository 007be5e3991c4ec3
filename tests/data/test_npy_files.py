"""Files with the array of one image, in class folders, in mask folders and where images are predicted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats import FORMATS, LABELS, pixels, save_dicom, write_npy
from PIL import Image
from small_sources import COUNTS, load, make_folders, make_mask_folders, make_npz, masks, some_images

from petriscope.core.errors import DataError
from petriscope.core.recipe import DataSection
from petriscope.data.decode import decode_file, image_size
from petriscope.data.file_check import check_files
from petriscope.data.omissions import LeftOut
from petriscope.data.sources import list_files
from petriscope.data.sources.holders import Source
from petriscope.data.sources.mask_files import read_mask
from petriscope.inference.decoding import find_images

LIMIT = 12


def write_classes(folder: Path, arrays: np.ndarray) -> Path:
    for number, array in enumerate(arrays):
        (folder / LABELS[number]).mkdir(parents=True, exist_ok=True)
        np.save(folder / LABELS[number] / f"{number:02d}.npy", array)
    return folder


def images_of(source: Path, **options: Any) -> np.ndarray:
    """All images in the order of their names."""
    parts = load(source, **options).splits.values()
    ids = np.concatenate([part.ids for part in parts])
    return np.concatenate([part.images for part in parts])[np.argsort([id.rpartition("/")[2] for id in ids])]


class TestNumbers:
    def test_gray(self, tmp_path: Path) -> None:
        gray = pixels()[..., 0]
        assert np.array_equal(images_of(write_classes(tmp_path / "a", gray))[..., 0], gray)
        assert np.array_equal(images_of(write_classes(tmp_path / "b", gray[..., None]))[..., 0], gray)

    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_16_bits(self, channels: int, order: str, tmp_path: Path) -> None:
        deep = np.random.default_rng(0).integers(0, 65536, (LIMIT, 8, 9, channels)).astype(f"{order}u2")
        source = write_classes(tmp_path / "set", deep)
        assert np.array_equal(images_of(source, depth=16), deep)
        names = {1: ("gray",), 3: ("red", "green", "blue")}.get(channels, tuple(f"channel {n}" for n in range(1, 5)))
        data = load(source)
        assert data.channels == names and any("--set data.depth=16 keeps all" in text for text in data.warnings)

    def test_order_of_fortran(self, tmp_path: Path) -> None:
        source = write_classes(tmp_path / "set", pixels())
        for path in source.rglob("*.npy"):
            np.save(path, np.asfortranarray(np.load(path)))
        assert np.array_equal(images_of(source), pixels())

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_floats(self, dtype: type, tmp_path: Path) -> None:
        source = write_classes(tmp_path / "unit", (pixels() / 255).astype(dtype))
        assert np.array_equal(images_of(source), pixels())
        wide = write_classes(tmp_path / "wide", (pixels() * 4.0 - 100).astype(dtype))
        with pytest.raises(DataError, match=r"00\.npy \(its values go from .* say which are black and white"):
            load(wide)
        assert np.array_equal(images_of(wide, range=(-100, 920)), pixels())

    def test_integers_need_a_range(self, tmp_path: Path) -> None:
        source = write_classes(tmp_path / "set", pixels().astype(np.int32) - 7)
        with pytest.raises(DataError, match="its values have the type int32; say which are black and white"):
            load(source)
        assert np.array_equal(images_of(source, range=(-7, 248)), pixels())


class TestWhatIsNoImage:
    def change(self, folder: Path, data: bytes) -> str:
        """Why a file among eleven others is left out."""
        source = write_classes(folder, pixels())
        (source / "cat/00.npy").write_bytes(data)
        with pytest.raises(DataError, match=r"00\.npy"):
            load(source)
        left = load(source, unreadable="skip")
        assert sum(map(len, left.splits.values())) == LIMIT - 1
        (said,) = [text for text in left.warnings if "00.npy" in text]
        return said

    def saved(self, array: np.ndarray, folder: Path) -> bytes:
        np.save(folder / "x.npy", array, allow_pickle=True)
        return (folder / "x.npy").read_bytes()

    def test_objects_are_not_unpickled(self, tmp_path: Path) -> None:
        class Trap:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return os.mkdir, (str(tmp_path / "sprung"),)

        said = self.change(tmp_path / "set", self.saved(np.array([[Trap()]]), tmp_path))
        assert "its array is object [1, 1]" in said and not (tmp_path / "sprung").exists()

    @pytest.mark.parametrize("shape", [(5,), (2, 8, 9, 3), (0, 9)])
    def test_another_shape(self, shape: tuple[int, ...], tmp_path: Path) -> None:
        said = self.change(tmp_path / "set", self.saved(np.zeros(shape, np.uint8), tmp_path))
        assert f"its array is uint8 {[*shape]}; an image is [H, W] or [H, W, C]" in said

    def test_more_is_claimed_than_there_is(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        header = str({"descr": "<f8", "fortran_order": False, "shape": (7000, 9000, 16)}).encode().ljust(117) + b"\n"
        data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(100)

        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("the array was read")

        with monkeypatch.context() as patch:
            (tmp_path / "huge.npy").write_bytes(data)
            patch.setattr("numpy.lib.format.read_array", refuse)
            with pytest.raises(DataError, match="truncated: it has 100 of the 8,064,000,000 bytes"):
                decode_file(tmp_path / "huge.npy")
            with pytest.raises(DataError, match="truncated"):
                image_size(tmp_path / "huge.npy")
        assert "truncated" in self.change(tmp_path / "set", data)

    def test_a_second_array_in_the_file(self, tmp_path: Path) -> None:
        one = self.saved(pixels()[0], tmp_path)
        assert f"it has {len(one)} bytes behind its array" in self.change(tmp_path / "set", one + one)

    def test_an_audit_tells_what_is_cut_off(self, tmp_path: Path) -> None:
        source = write_classes(tmp_path / "set", pixels())
        cut, foreign = source / "cat/00.npy", source / "dog/01.npy"
        cut.write_bytes(cut.read_bytes()[:200])
        foreign.write_bytes(self.saved(np.zeros(5), tmp_path))
        files = list_files(str(source), DataSection(source=str(source)))
        faults = check_files(files, {file.id for file in files} - {"cat/00.npy", "dog/01.npy"})
        assert [(fault.id, fault.finding) for fault in faults] == [
            ("cat/00.npy", "truncated"),
            ("dog/01.npy", "unreadable"),
        ]


class TestWhichFilesAreImages:
    def test_beside_images_of_another_kind_they_are_left_out(self, tmp_path: Path) -> None:
        source = write_classes(tmp_path / "set", pixels())
        for path in sorted(source.rglob("*.npy")):
            Image.fromarray(np.load(path)).save(path.with_suffix(".png"))
        np.save(source / "cat/00_seg.npy", np.array([{"outlines": 1}]), allow_pickle=True)
        data = load(source)
        assert all(id.endswith(".png") for part in data.splits.values() for id in part.ids)
        assert any("left out 13 .npy files (cat/00.npy)" in text for text in data.warnings)
        assert len(find_images([source])) == LIMIT

    def test_in_a_folder_beside_class_folders_they_are_no_class(self, tmp_path: Path) -> None:
        source = make_folders(tmp_path / "set")
        plain = load(source)
        (source / "features").mkdir()
        np.save(source / "features/cat.npy", np.zeros((5, 7), np.float32))
        data = load(source)
        assert data.fingerprint == plain.fingerprint
        assert any("1 .npy file (features/cat.npy)" in text for text in data.warnings)
        assert len(find_images([source])) == sum(COUNTS.values())

    def test_without_class_folders_the_message_says_what_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "set").mkdir()
        np.save(tmp_path / "set/pixels.npy", pixels())
        np.save(tmp_path / "set/kinds.npy", np.arange(LIMIT) % 2)
        with pytest.raises(DataError, match=r"each file has the array of one image.*numpy\.savez"):
            load(tmp_path / "set")

    def test_beside_shards_they_are_no_images(self, tmp_path: Path) -> None:
        source = Path(FORMATS["hub"].write(tmp_path))
        plain = load(source)
        np.save(source / "mean.npy", np.zeros(3))
        np.save(source / "data/deviation.npy", np.zeros(3))
        data = load(source)
        assert data.fingerprint == plain.fingerprint
        assert any("2 .npy files (mean.npy)" in text for text in data.warnings)
        left_out = LeftOut()
        kinds = {kind for kind, *_ in Source(str(source / "data")).chosen(left_out)}
        assert kinds == {"table"} and ".npy" in left_out.listed()

    def test_what_is_predicted(self, tmp_path: Path) -> None:
        source = Path(write_npy(tmp_path))
        assert len(find_images([source])) == LIMIT
        assert [kind for kind, *_ in Source(str(source)).chosen(LeftOut())] == ["image"] * LIMIT


class TestMasks:
    @pytest.mark.parametrize("images_too", [False, True])
    def test_the_same_as_of_other_files(self, images_too: bool, tmp_path: Path) -> None:
        plain = make_mask_folders(tmp_path / "plain")
        for path in sorted(plain.rglob("masks/*.png")):  # a palette has colors; arrays have numbers
            Image.fromarray(np.asarray(Image.open(path))).save(path)
        arrays = make_mask_folders(tmp_path / "arrays")
        for path in sorted(arrays.rglob("*.png")):
            if images_too or path.parent.name == "masks":
                np.save(path.with_suffix(".npy"), np.asarray(Image.open(path)))
                path.unlink()
        one, other = load(plain), load(arrays)
        assert one.fingerprint == other.fingerprint

    @pytest.mark.parametrize(
        ("change", "values"),
        [
            (lambda m: m > 0, [0, 1]),
            (lambda m: m.astype(np.float32), [0, 1, 2]),
            (lambda m: m.astype(np.int64)[..., None], [0, 1, 2]),
            (lambda m: np.repeat(m[..., None], 3, axis=2), [0, 1, 2]),
            (lambda m: m.astype(">u2") * 300, [0, 300, 600]),
        ],
    )
    def test_kinds_of_numbers(self, change: Any, values: list[int], tmp_path: Path) -> None:
        mask = masks(1)[0] % 3
        np.save(tmp_path / "mask.npy", change(mask))
        np.save(tmp_path / "image.npy", some_images(1)[0])
        found = read_mask(tmp_path / "mask.npy", tmp_path / "image.npy")
        assert not found.colored and np.array_equal(found.values, np.array(values)[np.minimum(mask, len(values) - 1)])

    def test_colors(self, tmp_path: Path) -> None:
        np.save(tmp_path / "mask.npy", np.full((8, 9, 3), (255, 0, 1), np.uint8))
        np.save(tmp_path / "image.npy", some_images(1)[0])
        found = read_mask(tmp_path / "mask.npy", tmp_path / "image.npy")
        assert found.colored and (found.values == 0xFF0001).all()

    @pytest.mark.parametrize(
        ("array", "said"),
        [
            (np.zeros((9, 8), np.uint8), "9 x 8 and its image 8 x 9"),
            (np.full((8, 9), -1), "has the value -1; class numbers count from 0"),
            (np.full((8, 9), 0.5), "not whole numbers"),
            (np.full((8, 9), np.nan), "not whole numbers"),
            (np.full((8, 9), 2**40), "class numbers are small"),
            (np.zeros((8, 9, 3), np.int64), r"int64 \[8, 9, 3\]; a mask is an array \[H, W\]"),
            (np.zeros((8, 9, 2), np.uint8), r"uint8 \[8, 9, 2\]; a mask is an array \[H, W\]"),
            (np.array([[None]]), "its array is object"),
        ],
    )
    def test_what_is_refused(self, array: np.ndarray, said: str, tmp_path: Path) -> None:
        np.save(tmp_path / "mask.npy", array, allow_pickle=True)
        np.save(tmp_path / "image.npy", some_images(1)[0])
        with pytest.raises(DataError, match=f"mask.npy.*{said}"):
            read_mask(tmp_path / "mask.npy", tmp_path / "image.npy")

    def test_masks_of_images_that_pillow_does_not_read(self, tmp_path: Path) -> None:
        pytest.importorskip("pydicom")
        source = make_mask_folders(tmp_path / "set", gray=True)
        for path in sorted(source.rglob("images/*.png")):
            save_dicom(path.with_suffix(".dcm"), np.asarray(Image.open(path)))
            path.unlink()
        assert len(load(source).split("train")) == COUNTS["train"]


def test_they_are_recognized_as_the_images_of_an_npz(tmp_path: Path) -> None:
    source = load(make_npz(tmp_path / "npz"))
    train = source.split("train")
    for number, image in enumerate(train.images):
        place = tmp_path / "files" / source.classes[train.targets[number]]
        place.mkdir(parents=True, exist_ok=True)
        np.save(place / f"{number}.npy", image)
    files = load(tmp_path / "files", val_fraction=0.0, test_fraction=0.0).split("train")
    assert sorted(files.digests()) == sorted(train.digests())
