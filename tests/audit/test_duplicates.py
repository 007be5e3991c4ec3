"""Duplicates are found whatever was done to the copy, and what merely looks alike is not one."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from petriscope.audit.descriptors import SYMMETRIES, orient
from petriscope.audit.duplicates import find_duplicates
from petriscope.core.errors import DataError
from petriscope.data.imageset import ImageSet
from petriscope.data.sources.synthetic_smear import draw_smear


@pytest.fixture(scope="module")
def cells() -> np.ndarray:
    """uint8 [200, 28, 28, 3]: different cells."""
    return draw_smear(200, 28, seed=3)[0]


def encoded(image: np.ndarray, kind: str, quality: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, quality=quality)
    return np.asarray(Image.open(stream).convert("RGB"))


def resized(image: np.ndarray, factor: float) -> np.ndarray:
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize((round(width * factor), round(height * factor)), Image.Resampling.BICUBIC)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


CHANGES = {
    "jpeg": lambda image: encoded(image, "JPEG", 70),
    "webp": lambda image: encoded(image, "WEBP", 70),
    "shrunk": lambda image: resized(image, 0.7),
    "enlarged": lambda image: resized(image, 1.5),
    "brighter": lambda image: np.clip(image * 1.15 + 10.0, 0, 255).astype(np.uint8),
    "darker": lambda image: (image * 0.8).astype(np.uint8),
}


def test_different_cells_are_no_duplicates(cells):
    found = find_duplicates(cells)
    assert (found.group == -1).all()
    assert not found.exact.any()
    assert (found.similarity == 0).all()
    assert set(found.transform) == {""}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found(cells, change):
    copies = np.stack([CHANGES[change](image) for image in cells[:20]])
    found = find_duplicates(np.concatenate([cells, copies]))
    assert (found.group[200:] == np.arange(20)).all()
    assert (found.group[:20] == np.arange(20)).all()
    assert (found.group[20:200] == -1).all()
    assert not found.exact.any()
    assert (found.similarity[200:] > 0.95).all()
    assert set(found.transform) == {""}


@pytest.mark.parametrize("symmetry", range(1, 8))
def test_rotated_and_mirrored_copies_are_found_and_named(cells, symmetry):
    found = find_duplicates(np.concatenate([cells[:100], orient(cells[:10], symmetry)]))
    assert (found.group[100:] == np.arange(10)).all()
    assert (found.transform[100:] == SYMMETRIES[symmetry]).all()
    assert (found.transform[:100] == "").all()


def test_names_of_symmetries():
    image = np.array([[1, 2], [3, 4]], np.uint8).reshape(1, 2, 2, 1)
    expected = {"rotated 90°": [3, 1, 4, 2], "mirrored": [2, 1, 4, 3], "mirrored and rotated 90°": [4, 2, 3, 1]}
    for name, pixels in expected.items():
        assert orient(image, SYMMETRIES.index(name)).ravel().tolist() == pixels


def test_exact_copies_are_one_group_with_changed_ones(cells):
    found = find_duplicates(np.concatenate([cells[:50], cells[7:8], cells[7:8], CHANGES["darker"](cells[7:8])]))
    assert np.flatnonzero(found.group == 0).tolist() == [7, 50, 51, 52]
    assert np.flatnonzero(found.exact).tolist() == [7, 50, 51]
    assert found.similarity[[7, 50, 51]].tolist() == [1, 1, 1]


def test_only_exact_copies_when_near_ones_are_not_wanted(cells):
    found = find_duplicates(np.concatenate([cells[:50], cells[:1], CHANGES["darker"](cells[1:2])]), near=False)
    assert np.flatnonzero(found.group >= 0).tolist() == [0, 50]


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("shape", [(28, 28, 3), (9, 14, 1), (1, 1, 1), (40, 70, 3)])
def test_few_images_of_any_shape(count, shape):
    images = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    found = find_duplicates(images)
    assert found.group.tolist() == [-1] * count
    assert find_duplicates(np.concatenate([images, images])).group.tolist() == 2 * list(range(count))


def test_images_that_show_nothing_are_not_near_duplicates():
    blank = np.clip(230 + np.random.default_rng(0).normal(0, 1.5, (60, 16, 16, 3)), 0, 255).astype(np.uint8)
    assert (find_duplicates(blank).group == -1).all()
    constant = np.repeat(np.arange(10, dtype=np.uint8), 2)[:, None, None, None] * np.ones((16, 16, 1), np.uint8)
    found = find_duplicates(constant)
    assert found.group.tolist() == np.repeat(np.arange(10), 2).tolist()
    assert found.exact.all()


def test_the_order_does_not_change_the_groups(cells):
    images = np.concatenate([cells[:80], orient(cells[:10], 3), CHANGES["darker"](cells[5:15])])
    order = np.random.default_rng(1).permutation(len(images))
    plain, mixed = find_duplicates(images), find_duplicates(images[order])
    back = np.empty_like(mixed.group)
    back[order] = mixed.group
    members = lambda group: {frozenset(np.flatnonzero(group == g).tolist()) for g in range(group.max() + 1)}  # noqa: E731
    assert members(plain.group) == members(back)
    again = find_duplicates(images)
    assert all(np.array_equal(getattr(plain, name), getattr(again, name)) for name in vars(plain))


def test_an_image_set_and_its_view_give_what_arrays_give(cells):
    pixels = np.concatenate([cells[:30], cells[3:5]])
    images = ImageSet(pixels, np.zeros(32, np.int64), ("cell",), np.arange(32).astype(str))
    assert np.array_equal(find_duplicates(images).group, find_duplicates(pixels).group)
    assert np.flatnonzero(find_duplicates(images.subset(np.arange(4, 32))).group >= 0).tolist() == [0, 27]


def test_other_arrays_are_refused():
    with pytest.raises(DataError, match="uint8"):
        find_duplicates(np.zeros((2, 8, 8, 3), np.float32))
