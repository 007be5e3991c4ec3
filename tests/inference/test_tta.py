"""Crops as test-time augmentation: which parts they show, and how predictions are averaged over them."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petriscope.experiments.ensemble import TTA_ORDER
from petriscope.inference.tta import TTA, predict_batch, views
from petriscope.report.standing import TTA_WORDS

sides = st.integers(1, 40)


def to_float(images):
    return images.permute(0, 3, 1, 2).float() / 255


class ByMeanColor(torch.nn.Module):
    """Three classes by the mean color of the whole."""

    def forward(self, images):
        mean = images.mean((1, 2, 3))
        return torch.stack([mean, -3 * mean, mean * 2], 1)


class ByPixel(torch.nn.Module):
    """Two classes by the value of each pixel."""

    dense = True

    def forward(self, images):
        seen = images.mean(1, keepdim=True)
        return torch.cat([9 * (seen - 0.5), 9 * (0.5 - seen)], 1)


@given(sides, sides, st.sampled_from([1, 3]), st.integers(0, 255))
@pytest.mark.parametrize("model", [ByMeanColor(), ByPixel()])
def test_a_uniform_image_is_predicted_as_without_crops(model, height, width, channels, value):
    images = torch.full((2, height, width, channels), value, dtype=torch.uint8)
    plain, cropped = (predict_batch(model, images, to_float, "fp32", tta) for tta in ("none", "crops"))
    torch.testing.assert_close(cropped, plain, atol=1e-5, rtol=1e-5)


@given(sides, sides, st.sampled_from([1, 3]))
def test_six_views_of_the_size_of_the_image(height, width, channels):
    images = torch.rand(2, channels, height, width)
    shown = views(images, "crops")
    assert [view.shape for view in shown] == [images.shape] * 6
    assert torch.equal(shown[0], images)


def test_kinds_are_ordered_by_their_number_of_views_and_known_everywhere():
    kinds = get_args(TTA)
    counts = [len(views(torch.zeros(1, 1, 8, 8), kind)) for kind in kinds]
    assert counts == sorted(counts) == [1, 2, 4, 6, 8]
    assert kinds == TTA_ORDER
    assert {"none", *TTA_WORDS} == set(kinds)


@pytest.mark.parametrize(("height", "width"), [(24, 32), (28, 28), (31, 17)])
def test_the_crops_are_the_corners_and_the_middle(height, width):
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    places = torch.stack([y, x])[None]
    high, wide = round(height * 7 / 8), round(width * 7 / 8)
    found = [tuple(view[0, :, 0, 0].tolist()) for view in views(places, "crops")[1:]]
    down, right = height - high, width - wide
    assert found == [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
    for view, (top, left) in zip(views(places, "crops")[1:], found, strict=True):
        assert view[0, :, -1, -1].tolist() == [top + high - 1, left + wide - 1]


def test_the_prediction_is_the_mean_over_the_views():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 20, 26, 3), dtype=np.uint8))
    found = predict_batch(ByMeanColor(), images, to_float, "fp32", "crops").exp()
    each = [ByMeanColor()(view).softmax(1) for view in views(to_float(images), "crops")]
    torch.testing.assert_close(found, torch.stack(each).mean(0))
    assert not torch.allclose(found, each[0])


@pytest.mark.parametrize(("height", "width"), [(32, 48), (33, 25)])
def test_masks_are_put_back_in_place(height, width):
    rng = np.random.default_rng(0)
    images = torch.zeros(6, height, width, 1, dtype=torch.uint8)
    for image in images:
        top, left = rng.integers(2, 8, 2)
        image[top : top + 15, left : left + 12] = 255
    plain, cropped = (predict_batch(ByPixel(), images, to_float, "fp32", tta).exp() for tta in ("none", "crops"))
    torch.testing.assert_close(cropped.sum(1), torch.ones(6, height, width))
    # Only outlines are smoothed, by the two interpolations.
    assert (cropped.argmax(1) == plain.argmax(1)).float().mean() > 0.995
    assert (cropped - plain).abs().mean() < 0.03
