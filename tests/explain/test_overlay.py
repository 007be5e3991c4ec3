"""Overlays: gray where the map is 0, bright where it is 1."""

import numpy as np
import pytest

from petriscope.explain.overlay import OUTLINE, enlarged, outlined, overlay


@pytest.mark.parametrize("channels", [1, 3])
def test_gray_without_heat_and_color_with(channels):
    image = np.random.default_rng(0).integers(0, 256, (6, 8, channels), dtype=np.uint8)
    cold = overlay(image, np.zeros((6, 8)))
    assert cold.shape == (6, 8, 3) and cold.dtype == np.uint8
    assert (cold == cold[..., :1]).all()
    heat = np.zeros((6, 8))
    heat[2, 3] = 1
    warm = overlay(image, heat)
    red, green, blue = (int(v) for v in warm[2, 3])
    assert red > green > blue
    warm[2, 3] = cold[2, 3]
    np.testing.assert_array_equal(warm, cold)


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(28, 28, (224, 224)), (96, 64, (192, 128)), (300, 200, (300, 200))]
)
def test_small_images_are_enlarged_by_whole_pixels(height, width, expected):
    image = np.zeros((height, width, 3), dtype=np.uint8)
    assert enlarged(image, np.zeros((height, width), dtype=np.float32)).shape == (*expected, 3)


def test_an_outline_is_the_inner_edge():
    region = np.zeros((6, 7), dtype=bool)
    region[1:5, 2:] = True
    drawn = (outlined(np.zeros((6, 7, 3), dtype=np.uint8), region) == OUTLINE).all(2)
    expected = region.copy()
    expected[2:4, 3:] = False
    np.testing.assert_array_equal(drawn, expected)
