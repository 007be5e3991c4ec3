"""Whether images may be mirrored and turned: shapes whose class does or does not depend on it."""

import time

import numpy as np
import pytest
import torch

from petriscope.data import ImageSet
from petriscope.experiments.orientation import Orientation, find_orientation

CPU = torch.device("cpu")


def shapes(kind, count=320, side=16):
    """Dots and crosses; or the letters b and d, which mirroring turns into one another; or L at its foot and upside down."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 60, (count, side, side, 1)).astype(np.uint8)
    labels = np.arange(count) % 2
    for image, label in zip(images, labels, strict=True):
        top, left = rng.integers(2, side - 9, 2)
        part = image[top : top + 7, left : left + 7]
        if kind == "symmetric":
            part[3, :] = part[:, 3] = 200
            if label:
                part[:] = 200
        elif kind == "letters":
            part[:, 6 if label else 0] = 200
            part[4:, :] = 200
        else:
            part[0 if label else 6, :] = 200
            part[:, 3] = 200
    return ImageSet(images, labels.astype(np.int64), ("one", "two"), np.arange(count).astype(str))


def asked(images, seconds=5.0):
    return find_orientation(images, CPU, seconds, time.process_time)


def test_shapes_without_orientation_may_be_turned_in_any_way():
    found = asked(shapes("symmetric"))
    assert found.turns
    assert str(found).startswith("may be mirrored, upside down, turned (a small network recognizes")


def test_what_makes_one_class_another_is_not_used():
    letters = asked(shapes("letters"))
    assert "mirrored" not in letters.used
    assert letters.found["mirrored"] < 0.6 < letters.plain
    tees = asked(shapes("tees"))
    assert "mirrored" in tees.used
    assert "upside down" not in tees.used
    assert not tees.turns


@pytest.mark.slow
def test_masks_turn_with_their_images():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 80, (100, 16, 16, 1)).astype(np.uint8)
    masks = np.zeros((100, 16, 16), dtype=np.uint8)
    for image, mask in zip(pixels, masks, strict=True):
        top, left = rng.integers(0, 9, 2)
        image[top : top + 7, left : left + 7] += 150
        mask[top : top + 7, left : left + 7] = 1
    found = asked(ImageSet(pixels, masks, ("rest", "square"), np.arange(100).astype(str)))
    assert found.turns
    masks[:, 8:] = 0  # what counts is in the upper half alone
    found = asked(ImageSet(pixels, masks, ("rest", "square"), np.arange(100).astype(str)))
    assert "mirrored" in found.used
    assert "upside down" not in found.used


def labeled(by_place, count=400, side=12):
    """Images of any of three labels: bright spots, each at a place of its own on the left, or channels that are brighter."""
    rng = np.random.default_rng(0)
    labels = (rng.random((count, 3)) < (0.5, 0.3, 0.2)).astype(np.uint8)
    images = rng.normal(80, 15, (count, side, side, 3))
    for k in range(3):
        here = (slice(4 * k, 4 * k + 4), slice(0, 4)) if by_place else (slice(None), slice(None))
        images[(slice(None), *here, k if not by_place else slice(None))] += 80 * labels[:, k].reshape(
            -1, 1, 1, *[1] * by_place
        )
    return ImageSet(images.clip(0, 255).astype(np.uint8), labels, ("a", "b", "c"), np.arange(count).astype(str))


def test_of_several_labels_the_ranking_is_compared():
    found = asked(labeled(by_place=False), 3.0)
    assert found.turns and found.plain > 0.9
    found = asked(labeled(by_place=True), 3.0)
    assert "mirrored" not in found.used and "upside down" not in found.used


def test_what_cannot_be_told_is_said():
    few = asked(shapes("symmetric", count=20))
    assert few.used == ()
    assert "too few" in str(few)
    noise = shapes("symmetric")
    noise.pixels[:] = np.random.default_rng(1).integers(0, 255, noise.pixels.shape)
    assert "does not learn enough" in str(asked(noise, seconds=1.0))


@pytest.mark.parametrize("groups", [False, True])
def test_it_is_tested_with_other_images_than_it_learned_from(groups):
    from petriscope.experiments.orientation import _halves

    images = shapes("symmetric")
    if groups:
        images = ImageSet(
            images.pixels, images.targets, images.classes, images.ids, groups=(np.arange(320) // 4).astype(str)
        )
    learned, tested = _halves(images)
    assert not set(learned) & set(tested)
    assert len(learned) > len(tested) >= 30
    if groups:
        assert not set(images.groups[learned]) & set(images.groups[tested])


def test_nothing_is_used_unless_it_is_found():
    assert not Orientation().turns
    assert str(Orientation(("mirrored",), {"mirrored": 0.9, "upside down": 0.5}, 0.91)) == (
        "may be mirrored (a small network recognizes 91 % as they are, mirrored 90 %, upside down 50 %)"
    )
