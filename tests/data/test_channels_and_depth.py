"""Images of 1 to 16 channels with 8 and 16 bits: what is kept of them, what they are called, and how they are shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_sources import load, make_npz

from petriscope.augment.pipeline import Normalize, to_float, to_whole
from petriscope.core.channels import RGB, colors_of, groups_of, in_words
from petriscope.core.drawing import shown, shown_as
from petriscope.core.errors import DataError, RequestError
from petriscope.core.recipe import check_recipe
from petriscope.data.batches import Batches
from petriscope.data.decode import Form, decode_as, decode_file, image_size
from petriscope.data.encode import encoded_exactly
from petriscope.data.imageset import ImageSet
from petriscope.data.in_memory import InMemory
from petriscope.data.levels import from_levels, to_levels
from petriscope.data.normalization import mean_and_std

FLUORESCENCE = ("DAPI", "GFP", "RFP", "Cy5")


def deep(count: int, channels: int = 4, seed: int = 0, top: int = 65535) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top + 1, (count, 8, 9, channels), dtype=np.uint16)


def four_channels(folder: Path, **changes: object) -> Path:
    images = {f"{split}_images": deep(count, seed=count) for split, count in (("train", 12), ("val", 4), ("test", 5))}
    labels = {"test_labels": np.arange(5) % 2}
    return make_npz(folder, **{**images, **labels, "channels": np.array(FLUORESCENCE), **changes})


class TestArrays:
    def test_sixteen_bits_are_kept_as_they_are(self, tmp_path: Path) -> None:
        data = load(four_channels(tmp_path), depth=16)
        part = data.split("train")
        assert part.pixels.dtype == np.uint16 and part.bits == 16 and part.channels == FLUORESCENCE
        np.testing.assert_array_equal(part.images, deep(12, seed=12))
        assert not [text for text in data.warnings if "bits" in text]

    def test_without_a_depth_eight_are_kept_and_that_is_said(self, tmp_path: Path) -> None:
        data = load(four_channels(tmp_path))
        np.testing.assert_array_equal(data.split("train").images, np.rint(deep(12, seed=12) / 257).astype(np.uint8))
        assert any("data.depth=16 keeps all" in text for text in data.warnings)

    def test_mapped_arrays_are_the_same(self, tmp_path: Path) -> None:
        path = four_channels(tmp_path)
        plain, mapped = (load(path, depth=16, bits=16, memory=memory) for memory in ("resident", "mapped"))
        assert mapped.split("train").mapped and mapped.fingerprint == plain.fingerprint
        np.testing.assert_array_equal(mapped.split("val").take([2, 0]), plain.split("val").take([2, 0]))

    def test_bits_are_spread_and_can_be_taken_back(self) -> None:
        stored = np.arange(4096, dtype=np.uint16)
        levels = to_levels(stored, 12, 16)
        assert levels[0] == 0 and levels[-1] == 65535 and (np.diff(levels.astype(int)) > 0).all()
        np.testing.assert_array_equal(from_levels(levels, 12), stored)

    @pytest.mark.parametrize("depth", [8, 16])
    def test_a_range_of_floats(self, depth: int, tmp_path: Path) -> None:
        full = 2**depth - 1
        values = np.linspace(-1, 1, 12 * 8 * 9).reshape(12, 8, 9, 1).astype(np.float32)
        values[3, 0, 0] = 7
        path = make_npz(tmp_path, gray=True, train_images=values, val_images=values[:4], test_images=values[:4])
        data = load(path, depth=depth, range=(-1.0, 1.0))
        expected = np.rint((values.astype(np.float64).clip(-1, 1) + 1) / 2 * full)
        np.testing.assert_array_equal(data.split("train").images, expected)
        assert any("3 images have values outside data.range" in text and "train/3" in text for text in data.warnings)
        assert any("256 levels" in text for text in data.warnings) == (depth == 8)
        assert not any("stored with 8 bits" in text for text in data.warnings)
        levels = data.split("train").images
        np.testing.assert_array_equal(to_levels(from_levels(levels, 16, (-1.0, 1.0)), 16, depth, (-1.0, 1.0)), levels)

    def test_whole_numbers_need_a_range(self, tmp_path: Path) -> None:
        values = np.random.default_rng(0).integers(-500, 500, (12, 8, 9, 2)).astype(np.int16)
        path = make_npz(tmp_path, train_images=values, val_images=values[:4], test_images=values[:4])
        with pytest.raises(DataError, match=r"data\.range"):
            load(path)
        part = load(path, range=(-500.0, 500.0), depth=16).split("train")
        assert part.channels == ("channel 1", "channel 2") and part.images.max() > 60000

    def test_floats_that_are_not_numbers(self, tmp_path: Path) -> None:
        values = np.full((12, 8, 9, 1), 0.5, np.float32)
        values[5, 1, 1] = np.nan
        with pytest.raises(DataError, match="train image 5 has NaN"):
            load(make_npz(tmp_path, gray=True, train_images=values, val_images=values[:4]), range=(0.0, 1.0))

    def test_seventeen_channels_and_channels_first(self, tmp_path: Path) -> None:
        many = np.zeros((12, 8, 9, 17), np.uint8)
        with pytest.raises(DataError, match="1 to 16 channels"):
            load(make_npz(tmp_path, train_images=many, val_images=many[:4], test_images=many[:4]))
        first = np.zeros((12, 3, 8, 9), np.uint8)
        with pytest.raises(DataError, match="channels come last"):
            load(make_npz(tmp_path, train_images=first, val_images=first[:4], test_images=first[:4]))

    def test_resizing_keeps_sixteen_bits(self, tmp_path: Path) -> None:
        flat = {f"{split}_images": np.full((n, 8, 9, 4), 40001, np.uint16) for split, n in (("train", 12), ("val", 4))}
        part = load(
            four_channels(tmp_path, **flat, test_images=flat["val_images"], test_labels=np.zeros(4, int)),
            depth=16,
            size=5,
        )
        assert (part.split("train").images == 40001).all() and part.shape == (5, 5, 4)


class TestNames:
    def test_colors_go_by_name(self) -> None:
        assert colors_of(("red", "green", "blue", "NIR")) == (0, 1, 2)
        assert colors_of(("NIR", "B", "g", "Red")) == (3, 2, 1)
        assert colors_of(("DAPI", "GFP", "RFP")) is None
        assert groups_of(RGB) == () == groups_of(("gray",))
        assert groups_of(("NIR", "red", "green", "blue")) == ((1, 2, 3), (0,))
        assert groups_of(("DAPI", "GFP", "RFP")) == ((0,), (1,), (2,))
        assert in_words(FLUORESCENCE) == "4 channels (DAPI, GFP, RFP, Cy5)"

    def test_names_choose_and_order(self, tmp_path: Path) -> None:
        data = load(four_channels(tmp_path), depth=16, channels=("Cy5", "gfp"))
        assert data.channels == ("Cy5", "gfp")
        np.testing.assert_array_equal(data.split("train").images, deep(12, seed=12)[..., [3, 1]])
        assert any("leaves out DAPI, RFP" in text for text in data.warnings)

    def test_names_for_a_source_without(self, tmp_path: Path) -> None:
        path = four_channels(tmp_path, channels=None)
        assert load(path).channels == ("channel 1", "channel 2", "channel 3", "channel 4")
        named = ("red", "green", "blue", "infrared")
        assert load(path, channels=named).channels == named
        with pytest.raises(DataError, match="names 2 channels"):
            load(path, channels=("a", "b"))

    def test_gray_and_rgb_of_other_channels(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="called red, green and blue"):
            load(four_channels(tmp_path / "a"), channels="rgb")
        path = four_channels(tmp_path / "b", channels=np.array(["infrared", "blue", "green", "red"]))
        data = load(path, channels="rgb", depth=16)
        np.testing.assert_array_equal(data.split("train").images, deep(12, seed=12)[..., [3, 2, 1]])
        assert any("leaves out infrared" in text for text in data.warnings)
        assert load(path, channels="gray", depth=16).shape == (8, 9, 1)

    def test_a_name_twice(self) -> None:
        with pytest.raises(RequestError, match="a name of its own"):
            check_recipe({"data": {"channels": ["DAPI", "dapi"]}})

    def test_wrong_names_in_a_source(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="names 2 channels"):
            load(four_channels(tmp_path, channels=np.array(["a", "b"])))


class TestFiles:
    def test_npy(self, tmp_path: Path) -> None:
        image = deep(1)[0]
        np.save(tmp_path / "a.npy", image)
        np.testing.assert_array_equal(
            decode_as(tmp_path / "a.npy", None, Form(channels=FLUORESCENCE, depth=16))[0], image
        )
        assert image_size(tmp_path / "a.npy") == (8, 9)
        with pytest.raises(DataError, match="names 2 channels"):
            decode_as(tmp_path / "a.npy", None, Form(channels=("a", "b"), depth=16))
        np.save(
            tmp_path / "first.npy", np.zeros((3, 9, 12), np.uint8)
        )  # 12 channels are possible, but 3 x 9 pixels are few
        with pytest.raises(
            DataError, match=r"\[3, 9, 12\], an image of 3 x 9 pixels with 12 channels. If its channels"
        ):
            decode_file(tmp_path / "first.npy")
        with pytest.raises(DataError, match="If its channels come first"):
            image_size(tmp_path / "first.npy")
        named = Form(channels=tuple(f"band {number}" for number in range(12)))
        assert decode_as(tmp_path / "first.npy", None, named)[0].shape == (3, 9, 12)
        np.save(tmp_path / "many.npy", np.zeros((3, 64, 64), np.uint8))
        with pytest.raises(DataError, match="it has 64 channels; there can be 1 to 16; channels come last"):
            decode_file(tmp_path / "many.npy")
        np.save(tmp_path / "o.npy", np.array([{}]), allow_pickle=True)
        with pytest.raises(DataError, match="an image is"):
            decode_file(tmp_path / "o.npy")
        (tmp_path / "cut.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:200])
        with pytest.raises(DataError, match="cannot be read"):
            decode_as(tmp_path / "cut.npy", None, Form(channels=FLUORESCENCE))

    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_written_and_read_again(self, channels: int) -> None:
        for image in (deep(1, channels)[0], deep(1, channels)[0].astype(np.uint8)):
            _, content = encoded_exactly(image)
            names = FLUORESCENCE[:channels]
            form = Form(channels=names, depth=8 * image.itemsize)
            np.testing.assert_array_equal(decode_as(InMemory("a", content), None, form)[0], image)

    def test_gray_png_with_sixteen_bits(self, tmp_path: Path) -> None:
        image = deep(1, 1)[0]
        Image.fromarray(image[..., 0]).save(tmp_path / "a.png")
        np.testing.assert_array_equal(decode_file(tmp_path / "a.png", depth=16), image)
        turned = Image.Exif()
        turned[0x0112] = 6
        Image.fromarray(image[..., 0]).save(tmp_path / "b.png", exif=turned)
        np.testing.assert_array_equal(decode_file(tmp_path / "b.png", depth=16), np.rot90(image, 3))

    def test_four_bands_are_four_channels_only_if_four_are_named(self, tmp_path: Path) -> None:
        image = deep(1)[0].astype(np.uint8)
        Image.fromarray(image).save(tmp_path / "a.png")
        named = Form(channels=("red", "green", "blue", "infrared"))
        np.testing.assert_array_equal(decode_as(tmp_path / "a.png", None, named)[0], image)
        assert decode_file(tmp_path / "a.png").shape == (8, 9, 3)

    def test_class_folders(self, tmp_path: Path) -> None:
        for number in range(12):
            path = tmp_path / "cells" / f"c{number % 2}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(deep(1, 1, number)[0, ..., 0]).save(path)
        data = load(tmp_path / "cells", depth=16, channels=("DAPI",))
        assert data.bits == 16 and data.channels == ("DAPI",)
        first = data.split("train")
        number = int(Path(str(first.ids[0])).stem)
        np.testing.assert_array_equal(first.images[0], deep(1, 1, number)[0])


def test_floats_hold_all_levels() -> None:
    every = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(1, 256, 256, 1)
    assert torch.equal(to_whole(to_float(every), torch.uint16).int(), every.int())


def test_normalization_of_sixteen_bits() -> None:
    pixels = deep(6)
    images = ImageSet(pixels, np.arange(6) % 2, ("a", "b"), np.arange(6).astype(str))
    mean, std = mean_and_std(images)
    np.testing.assert_allclose(mean, (pixels / 65535).mean((0, 1, 2)), rtol=1e-9)
    batch, _ = Batches(images, torch.device("cpu"), "resident").take(np.arange(6))
    assert batch.dtype == torch.uint16
    out = Normalize(mean, std)(batch)
    assert out.mean((0, 2, 3)).abs().max() < 1e-5 and (out.std((0, 2, 3)) - 1).abs().max() < 1e-2


def test_what_people_see() -> None:
    plain = np.random.default_rng(0).integers(0, 256, (3, 8, 9, 3), dtype=np.uint8)
    assert shown(plain) is plain and shown_as(RGB, 8) == ""
    four = np.zeros((2, 8, 9, 4), np.uint16)
    four[0, ..., 1] = 900
    seen = shown(four, FLUORESCENCE)
    assert seen.dtype == np.uint8 and seen.shape == (2, 8, 9, 3)
    assert seen[0].reshape(-1, 3).max(0).tolist() == [0, 255, 0] and not seen[1].any()
    assert "GFP in green" in shown_as(FLUORESCENCE, 16)
    named = ("infrared", "red", "green", "blue")
    assert np.array_equal(shown(deep(2), named), shown(deep(2)[..., 1:], RGB))
    assert "infrared is not shown" in shown_as(named, 8)
