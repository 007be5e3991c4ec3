"""Image sets over a mapped file: the same images as in memory, and no more of the file in memory than asked for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from petriscope.core.errors import DataError
from petriscope.data.imageset import ImageSet

PIXELS = np.random.default_rng(0).integers(0, 256, (50, 6, 5, 3), dtype=np.uint8)


def image_set(pixels, rows=None):
    count = len(pixels) if rows is None else len(rows)
    return ImageSet(pixels, np.zeros(count, dtype=np.int64), ("a", "b"), np.arange(count).astype(str), rows=rows)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("mapped") / "pixels.npy"
    np.save(path, PIXELS)
    return path


@given(indices=st.lists(st.integers(-20, 19), max_size=30), seed=st.integers(0, 9))
def test_a_mapped_set_gives_the_images_of_one_in_memory(path, indices, seed):
    rows = np.random.default_rng(seed).permutation(50)[:20]
    indices = np.array(indices, dtype=np.int64)
    mapped = image_set(np.load(path, mmap_mode="r"), rows)
    assert mapped.mapped
    assert np.array_equal(mapped.take(indices), image_set(PIXELS, rows).take(indices))


def test_taking_reads_the_file_and_not_the_map(path, monkeypatch):
    images = image_set(np.load(path, mmap_mode="r"))
    monkeypatch.setattr(np.memmap, "__getitem__", lambda *args: pytest.fail("the map was touched"))
    assert np.array_equal(images.take(np.array([3, 1])), PIXELS[[3, 1]])


def test_a_row_that_is_not_there_and_a_file_cut_short_are_errors(tmp_path):
    path = tmp_path / "pixels.npy"
    np.save(path, PIXELS)
    images = image_set(np.load(path, mmap_mode="r"))
    with pytest.raises(IndexError):
        images.take(np.array([50]))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match="shorter than it was"):
        images.take(np.array([49]))
