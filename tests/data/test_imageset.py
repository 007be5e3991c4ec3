"""Image sets over a mapped file: the same images as in memory, and no more of the file in memory than asked for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from petriscope.core.errors import DataError
from petriscope.data.imageset import ImageSet
from petriscope.tasks import find_task

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


def test_the_task_follows_from_the_targets_or_is_given():
    masks = np.zeros((4, 6, 5), dtype=np.uint8)
    ids, classes = np.arange(4).astype(str), ("a", "b")
    assert image_set(PIXELS).task is find_task("classification")
    assert ImageSet(PIXELS[:4], masks, classes, ids).task is find_task("segmentation")
    assert image_set(PIXELS).subset(np.array([1, 2])).task is find_task("classification")
    with pytest.raises(DataError, match="task classification must be"):
        ImageSet(PIXELS[:4], masks, classes, ids, task=find_task("classification"))
    with pytest.raises(DataError, match=r"targets must be .* or "):
        ImageSet(PIXELS[:4], masks[0].astype(np.float32), classes, ids)


def test_counts_are_of_images_or_of_labeled_pixels():
    masks = np.zeros((4, 6, 5), dtype=np.uint8)
    masks[0], masks[1, 0] = 255, 1
    images = ImageSet(PIXELS[:4], masks, ("a", "b"), np.arange(4).astype(str))
    assert images.counts.tolist() == [85, 5]
    assert images.strata.tolist()[1] == 1  # the rarest class in the image
    assert image_set(PIXELS).counts.tolist() == [50, 0]


def test_digests_are_of_the_pixels_of_each_image(path):
    rows = np.array([3, 7, 3, 49])
    mapped, held = image_set(np.load(path, mmap_mode="r"), rows), image_set(PIXELS[rows])
    digests = mapped.digests()
    assert digests == held.digests() and all(len(digest) == 16 for digest in digests)
    assert digests[0] == digests[2] and len(set(digests)) == 3
