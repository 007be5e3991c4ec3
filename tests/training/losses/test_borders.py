"""Distances to borders, against scipy's."""

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from petriscope.core.masks import IGNORE, border_pixels
from petriscope.training.losses.borders import near_borders


def slow_border(mask):
    out = np.zeros(mask.shape, dtype=bool)
    for row, column in np.ndindex(mask.shape):
        for down, across in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            y, x = row + down, column + across
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]:
                pair = {int(mask[row, column]), int(mask[y, x])}
                out[row, column] |= len(pair) == 2 and IGNORE not in pair
    return out


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.5])
def test_it_falls_with_the_distance(sigma):
    rng = np.random.default_rng(0)
    small = rng.choice([0, 1, 2, IGNORE], (3, 4, 5))
    masks = np.kron(small, np.ones((1, 5, 6), dtype=np.int64))
    near = near_borders(torch.from_numpy(masks), sigma).numpy()
    for mask, found in zip(masks, near, strict=True):
        border = slow_border(mask)
        assert np.array_equal(border, border_pixels(torch.from_numpy(mask[None]))[0].numpy())
        distance = distance_transform_edt(~border)
        inside = distance <= 3 * sigma
        assert found[inside] == pytest.approx(np.exp(-(distance[inside] ** 2) / (2 * sigma**2)), rel=1e-5)
        assert found[distance > np.ceil(3 * sigma)].max(initial=0) == 0


def test_unlabeled_ground_has_no_border():
    masks = torch.tensor([[[0, 0, IGNORE, 1, 1]]])
    assert not border_pixels(masks).any()
    assert not near_borders(masks, 2.0).any()


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 4), (1, 3, 1)])
def test_small_masks(shape):
    assert near_borders(torch.zeros(shape, dtype=torch.long), 2.0).shape == shape
