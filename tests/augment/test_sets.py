"""A whole set, augmented once."""

from __future__ import annotations

import numpy as np
import pytest

from petriscope.augment import AUGMENTATIONS
from petriscope.augment import sets as module
from petriscope.augment.sets import augmented_set
from petriscope.core.recipe import Part
from petriscope.data.imageset import ImageSet

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)
IDS = np.array([f"train/{i}" for i in range(50)])
LABELS = ImageSet(PIXELS, np.arange(50) % 3, ("a", "b", "c"), IDS)
MASKS = ImageSet(PIXELS, RNG.integers(0, 3, (50, 8, 8)).astype(np.uint8), ("a", "b", "c"), IDS)


def built(**options):
    return [AUGMENTATIONS.build(Part(**options))]


@pytest.mark.parametrize("images", [LABELS, MASKS], ids=["labels", "masks"])
def test_the_same_bits_at_every_call_and_other_images_than_before(images, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 16)
    brighter = built(name="brightness", amount=0.3)
    first, second = augmented_set(images, brighter), augmented_set(images, brighter)
    np.testing.assert_array_equal(first.images, second.images)
    assert first.images.dtype == np.uint8 and first.images.shape == images.images.shape
    assert (first.images != images.images).any((1, 2, 3)).mean() > 0.9
    np.testing.assert_array_equal(first.targets, images.targets)
    assert first.targets.dtype == images.targets.dtype


def test_masks_move_with_their_images():
    mirrored = augmented_set(MASKS, built(name="flip", horizontal=1.0))
    np.testing.assert_array_equal(mirrored.images, MASKS.images[:, :, ::-1])
    np.testing.assert_array_equal(mirrored.targets, MASKS.targets[:, :, ::-1])


def test_of_a_view_only_its_own_rows():
    part = LABELS.subset(np.array([4, 2, 9]))
    out = augmented_set(part, [])
    np.testing.assert_array_equal(out.images, LABELS.images[[4, 2, 9]])
    np.testing.assert_array_equal(out.targets, LABELS.targets[[4, 2, 9]])
    np.testing.assert_array_equal(out.ids, part.ids)
