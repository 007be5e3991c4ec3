"""The drawn blood cells: their form, that they repeat, and that they are no task for a linear model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from petriscope.core.errors import RequestError
from petriscope.core.recipe import DataSection
from petriscope.data.sources.synthetic_smear import CLASSES, KINDS, LOBES, draw_smear, read


def test_form_and_classes() -> None:
    images, labels = draw_smear(20)
    assert images.shape == (20, 28, 28, 3) and images.dtype == np.uint8
    assert labels.shape == (20,) and labels.dtype == np.int64
    assert len(CLASSES) == 8 and list(CLASSES) == sorted(CLASSES)
    assert all(1 <= kind.lobes[0] <= kind.lobes[1] <= LOBES for kind in KINDS.values())


def test_same_seed_same_bytes() -> None:
    first, second = draw_smear(70, seed=3), draw_smear(70, seed=3)
    assert first[0].tobytes() == second[0].tobytes()
    assert first[1].tobytes() == second[1].tobytes()


def test_other_seed_other_images() -> None:
    images, labels = draw_smear(64, seed=0)
    others, other_labels = draw_smear(64, seed=1)
    assert not (images == others).all(axis=(1, 2, 3)).any()
    assert (labels != other_labels).any()


@pytest.mark.parametrize(("count", "size"), [(5, 28), (64, 28), (100, 28), (3, 96), (9, 96), (20, (40, 64))])
def test_a_larger_count_only_adds_images(count: int, size: int | tuple[int, int]) -> None:
    images, labels = draw_smear(count, size, seed=2)
    more, more_labels = draw_smear(count + 70, size, seed=2)
    assert (more[:count] == images).all()
    assert (more_labels[:count] == labels).all()


def test_images_do_not_repeat() -> None:
    images, _ = draw_smear(300)
    assert len({image.tobytes() for image in images}) == 300


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 70), count=st.integers(0, 20))
def test_any_size(height: int, width: int, count: int) -> None:
    with np.errstate(all="raise", under="ignore"):
        images, labels = draw_smear(count, (height, width))
    assert images.shape == (count, height, width, 3)
    assert len(labels) == count


@pytest.mark.parametrize("size", [28, 64, 96, (30, 50)])
def test_images_show_something_at_every_size(size: int | tuple[int, int]) -> None:
    images, _ = draw_smear(64, size)
    assert (images.std(axis=(1, 2, 3)) > 8).all()
    assert 90 < images.mean() < 230


def test_one_scene_fits_all_sizes() -> None:
    """Nothing is measured in pixels: the mean cell looks alike, whatever the size."""
    small, small_labels = draw_smear(800, 24)
    large, large_labels = draw_smear(800, 48)
    for kind in range(len(CLASSES)):
        coarse = large[large_labels == kind].mean(axis=0).reshape(24, 2, 24, 2, 3).mean(axis=(1, 3))
        assert np.abs(coarse - small[small_labels == kind].mean(axis=0)).mean() < 12


@pytest.mark.parametrize("count", [8, 100, 1003])
def test_classes_are_balanced_and_shuffled(count: int) -> None:
    _, labels = draw_smear(count, 8)
    counts = np.bincount(labels, minlength=len(CLASSES))
    assert counts.max() - counts.min() <= 1
    if count > 8:
        assert len({tuple(labels[start : start + 8]) for start in range(0, count - 8, 8)}) > 1


@pytest.mark.parametrize(("count", "size"), [(-1, 28), (1, 0), (1, (28, 0))])
def test_impossible_requests_are_refused(count: int, size: int | tuple[int, int]) -> None:
    with pytest.raises(RequestError, match="cannot be drawn"):
        draw_smear(count, size)


def test_read_makes_one_pile() -> None:
    piles = read(DataSection(), count=24)
    assert list(piles) == ["all"]
    pile = piles["all"]
    assert len(pile) == 24 and pile.shape == (28, 28, 3) and pile.classes == CLASSES
    assert pile.ids[0] == "cell/000000" and pile.ids[-1] == "cell/000023"
    assert (pile.images == draw_smear(24)[0]).all()


def test_read_follows_size_and_channels() -> None:
    gray = read(DataSection(size=(20, 32), channels="gray"), count=10)["all"]
    color = read(DataSection(size=(20, 32), channels="rgb"), count=10)["all"]
    assert gray.shape == (20, 32, 1) and color.shape == (20, 32, 3)
    red, green, blue = np.moveaxis(color.images.astype(float), -1, 0)
    assert np.abs(gray.images[..., 0] - (0.299 * red + 0.587 * green + 0.114 * blue)).max() <= 0.51


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_linear_model_does_not_solve_it() -> None:
    images, labels = draw_smear(2000)
    flat = images.reshape(len(images), -1).astype(np.float64)
    scaler = StandardScaler().fit(flat[:1500])
    model = LogisticRegression(C=1e-3, max_iter=60).fit(scaler.transform(flat[:1500]), labels[:1500])
    accuracy = model.score(scaler.transform(flat[1500:]), labels[1500:])
    assert 0.4 < accuracy < 0.8
