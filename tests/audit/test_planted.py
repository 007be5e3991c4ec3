"""An image that was planted many times is found whatever it is blended over, and nothing is found where none is."""

from __future__ import annotations

import numpy as np
import pytest

from petriscope.audit.planted import find_planted
from petriscope.core.errors import DataError
from petriscope.data.imageset import ImageSet
from petriscope.data.sources.synthetic_smear import draw_smear


@pytest.fixture(scope="module")
def cells() -> np.ndarray:
    """uint8 [600, 24, 24, 3]: different cells."""
    return draw_smear(600, 24, seed=1)[0]


def joke(seed: int, shape: tuple[int, int, int] = (24, 24, 3)) -> np.ndarray:
    """A few dark bars on a light ground, float [H, W, C]."""
    rng = np.random.default_rng(seed)
    out = np.full(shape, 235.0)
    for _ in range(6):
        top, left = rng.integers(0, shape[0] - 4), rng.integers(0, shape[1] - 8)
        out[top : top + 3, left : left + 8] = rng.integers(0, 120, shape[2])
    return out


def plant(cells: np.ndarray, image: np.ndarray, where: slice, opacity: tuple[float, float]) -> np.ndarray:
    out = cells.astype(float)
    share = np.random.default_rng(0).uniform(*opacity, (where.stop - where.start, 1, 1, 1))
    out[where] += share * (image - out[where])
    return np.rint(out).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_is_found_among_different_cells(cells, channels):
    found = find_planted(cells[..., :channels])
    assert (found.group == -1).all()
    assert (found.score == 0).all()
    assert found.templates.shape == (0, 24, 24, channels)


@pytest.mark.parametrize("opacity", [(0.3, 0.3), (0.3, 0.7), (1, 1)])
@pytest.mark.parametrize("copies", [12, 100])
@pytest.mark.parametrize("channels", [1, 3])
def test_copies_blended_over_cells_are_found(cells, opacity, copies, channels):
    images = plant(cells[..., :channels], joke(2)[..., :channels], slice(50, 50 + copies), opacity)
    found = find_planted(images)
    assert np.flatnonzero(found.group == 0).tolist() == list(range(50, 50 + copies))
    assert found.group.max() == 0
    assert (found.score[50 : 50 + copies] > 0.3).all()
    assert (found.score <= 1).all()
    assert found.score[:50].max() == 0


def test_two_plants_are_two_groups_in_the_order_of_their_first_members(cells):
    images = plant(cells, joke(3), slice(300, 400), (0.4, 0.7))
    images = plant(images, joke(4), slice(100, 130), (0.4, 0.7))
    found = find_planted(images)
    assert np.flatnonzero(found.group == 0).tolist() == list(range(100, 130))
    assert np.flatnonzero(found.group == 1).tolist() == list(range(300, 400))
    assert found.templates.shape == (2, 24, 24, 3)


def test_a_fainter_blend_has_a_lower_score(cells):
    images = plant(cells, joke(2), slice(0, 40), (0.3, 0.3))
    images = plant(images, joke(2), slice(40, 80), (0.7, 0.7))
    found = find_planted(images)
    assert (found.group[:80] == 0).all()
    assert np.median(found.score[:40]) < np.median(found.score[40:80])


def test_the_template_looks_like_what_was_planted(cells):
    found = find_planted(plant(cells, joke(5), slice(0, 100), (0.5, 0.6)))
    assert found.templates.dtype == np.uint8
    assert np.corrcoef(found.templates[0].ravel(), joke(5).ravel())[0, 1] > 0.95


def test_a_wide_image(cells):
    wide = np.concatenate([cells[:300, :16], cells[300:, :16]], axis=2)
    images = plant(wide, joke(6, (16, 48, 3)), slice(20, 60), (0.5, 0.6))
    assert np.flatnonzero(find_planted(images).group == 0).tolist() == list(range(20, 60))


def test_the_order_of_images_does_not_matter_and_the_result_is_repeatable(cells):
    images = plant(cells, joke(2), slice(0, 60), (0.4, 0.7))
    order = np.random.default_rng(1).permutation(len(images))
    mixed, again = find_planted(images[order]), find_planted(images[order])
    assert np.flatnonzero(mixed.group == 0).tolist() == np.flatnonzero(order < 60).tolist()
    assert all(np.array_equal(getattr(mixed, name), getattr(again, name)) for name in vars(mixed))


def test_members_outside_the_sample_are_found_too(cells, monkeypatch):
    monkeypatch.setattr("petriscope.audit.planted.SAMPLE", 300)
    batch = plant(cells, joke(2), slice(0, 120), (0.4, 0.7))
    images = ImageSet(batch, np.zeros(600, np.int64), ("cell",), np.arange(600).astype(str))
    assert np.flatnonzero(find_planted(images).group == 0).tolist() == list(range(120))


@pytest.mark.parametrize("count", [0, 1, 2, 40])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 9, 3), (28, 28, 3)])
def test_images_that_show_nothing_are_not_planted(count, shape):
    same = np.full((count, *shape), 200, np.uint8)
    levels = (np.arange(count, dtype=np.uint8) * 3)[:, None, None, None] + np.zeros(shape, np.uint8)
    for images in (same, levels):
        found = find_planted(images)
        assert (found.group == -1).all()
        assert found.templates.shape == (0, *shape)


def test_blank_images_among_cells_are_not_planted(cells):
    blank = np.full((60, 24, 24, 3), 230, np.uint8)
    assert (find_planted(np.concatenate([cells, blank])).group == -1).all()


@pytest.mark.parametrize("share", [0.5, 0.8, 1])
def test_what_most_images_show_is_not_planted(cells, share):
    images = cells[:60].copy()
    images[: int(share * 60)] = images[0]
    found = find_planted(images)
    assert (found.group[int(share * 60) :] == -1).all()
    assert len(found.templates) == found.group.max() + 1


def test_other_arrays_are_refused():
    with pytest.raises(DataError, match="uint8"):
        find_planted(np.zeros((20, 8, 8, 3), np.float32))
