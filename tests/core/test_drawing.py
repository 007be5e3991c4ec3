import numpy as np
import pytest

from petriscope.core.drawing import class_colors, overlay, paint, palette


@pytest.mark.parametrize("count", [1, 4, 8, 30])
def test_classes_have_colors_of_their_own(count: int) -> None:
    colors = class_colors(count)
    assert colors.shape == (count, 3) and colors.dtype == np.uint8
    assert len(np.unique(colors, axis=0)) == count
    assert (colors.max(1) > 100).all()  # none is taken for the black of unlabeled pixels


def test_a_class_keeps_its_color_whatever_the_count() -> None:
    np.testing.assert_array_equal(class_colors(3), class_colors(20)[:3])


def test_unlabeled_pixels_are_black_and_show_the_image() -> None:
    mask = np.array([[0, 1, 255]], dtype=np.uint8)
    assert (paint(mask, 2)[0, 2] == 0).all()
    assert (palette(2)[:2] == class_colors(2)).all()
    image = np.full((1, 3, 1), 90, dtype=np.uint8)
    laid = overlay(image, mask, 2, share=0.5)
    np.testing.assert_array_equal(laid[0, 2], [90, 90, 90])
    np.testing.assert_array_equal(laid[0, 0], (90 + class_colors(2)[0].astype(int) + 1) // 2)
