"""The drawn ground with masks."""

from __future__ import annotations

import numpy as np
import pytest
from small_sources import load

from petriscope.core.errors import RequestError
from petriscope.core.masks import IGNORE
from petriscope.data.sources.synthetic_terrain import CLASSES, SCENE, draw_terrain


def test_a_larger_count_only_adds_images() -> None:
    few, some = draw_terrain(11, (16, 24)), draw_terrain(21, (16, 24))
    for one, other in zip(few, some, strict=True):
        assert np.array_equal(one, other[:11])
    assert not np.array_equal(draw_terrain(11, (16, 24), seed=1)[0], few[0])


def test_every_class_is_there_and_big_rocks_are_rare() -> None:
    _, masks = draw_terrain(160, (32, 64))
    shares = np.bincount(masks.reshape(-1), minlength=256) / masks.size
    assert (shares[:3] > 0.05).all() and 0.003 < shares[3] < 0.05 and 0.15 < shares[IGNORE] < 0.5
    assert set(np.unique(masks)) == {0, 1, 2, 3, IGNORE} and len(CLASSES) == 4


def test_classes_can_be_told_apart_by_what_the_images_show() -> None:
    images, masks = draw_terrain(160, (32, 64))
    by_class = [images[..., 0][masks == label].astype(float) for label in range(3)]
    assert by_class[1].mean() > by_class[0].mean() > by_class[2].mean()


def test_scenes_stay_in_one_split() -> None:
    data = load("synthetic-terrain:96", size=(8, 16))
    scenes = [set(part.groups.tolist()) for part in data.splits.values() if part.groups is not None]
    assert sum(map(len, scenes)) == len(set.union(*scenes)) == 96 // SCENE
    assert data.shape == (8, 16, 1)


def test_sizes_and_counts_that_cannot_be() -> None:
    assert draw_terrain(2, (1, 1))[0].shape == (2, 1, 1, 1)
    with pytest.raises(RequestError, match="cannot be drawn"):
        draw_terrain(1, (0, 8))
    with pytest.raises(RequestError, match="synthetic-terrain"):
        load("synthetic-terrain:many")
