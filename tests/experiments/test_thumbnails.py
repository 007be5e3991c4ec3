"""Small versions of images and masks for the report."""

import numpy as np
import pytest

from petriscope.experiments.thumbnails import shrink_images, shrink_masks, sides


@pytest.mark.parametrize(("height", "width", "expected"), [(12, 9, (12, 9)), (192, 96, (96, 48)), (97, 10, (96, 10))])
@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_stay_and_large_ones_shrink(height, width, expected, channels):
    images = np.full((2, height, width, channels), 77, dtype=np.uint8)
    assert (shrink_images(images) == 77).all()
    assert shrink_images(images).shape == (2, *expected, channels)
    assert sides((height, width, channels)) == expected
    assert shrink_images(images[:0]).shape == (0, *expected, channels)


def test_small_masks_keep_classes_and_lie_as_their_images_do():
    masks = np.zeros((2, 192, 96), dtype=np.uint8)
    masks[:, :96], masks[:, :, 48:] = 3, 7
    shrunk = shrink_masks(masks)
    assert shrunk.shape == (2, *shrink_images(masks[..., None]).shape[1:3]) == (2, 96, 48)
    expected = np.zeros((96, 48), dtype=np.uint8)
    expected[:48], expected[:, 24:] = 3, 7
    np.testing.assert_array_equal(shrunk[1], expected)
    assert shrink_masks(masks[:, :20, :30]).shape == (2, 20, 30)
