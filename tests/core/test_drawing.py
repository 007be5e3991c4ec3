import numpy as np
import pytest
from PIL import Image

from petriscope.core.drawing import (
    OUTLINE,
    class_colors,
    enlarged_overlay,
    fit_within,
    heat_overlay,
    outlined,
    overlay,
    paint,
    palette,
    resize_images,
    write_png,
)


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


@pytest.mark.parametrize("channels", [1, 3])
def test_gray_without_heat_and_color_with(channels):
    image = np.random.default_rng(0).integers(0, 256, (6, 8, channels), dtype=np.uint8)
    cold = heat_overlay(image, np.zeros((6, 8)))
    assert cold.shape == (6, 8, 3) and cold.dtype == np.uint8
    assert (cold == cold[..., :1]).all()
    heat = np.zeros((6, 8))
    heat[2, 3] = 1
    warm = heat_overlay(image, heat)
    red, green, blue = (int(v) for v in warm[2, 3])
    assert red > green > blue
    warm[2, 3] = cold[2, 3]
    np.testing.assert_array_equal(warm, cold)


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(28, 28, (224, 224)), (96, 64, (192, 128)), (300, 200, (300, 200))]
)
def test_small_images_are_enlarged_by_whole_pixels(height, width, expected):
    image = np.zeros((height, width, 3), dtype=np.uint8)
    assert enlarged_overlay(image, np.zeros((height, width), dtype=np.float32)).shape == (*expected, 3)


def test_an_outline_is_the_inner_edge():
    region = np.zeros((6, 7), dtype=bool)
    region[1:5, 2:] = True
    drawn = (outlined(np.zeros((6, 7, 3), dtype=np.uint8), region) == OUTLINE).all(2)
    expected = region.copy()
    expected[2:4, 3:] = False
    np.testing.assert_array_equal(drawn, expected)


@pytest.mark.parametrize(
    ("size", "longest", "shortest", "expected"),
    [
        ((28, 20), 96, 1, (28, 20)),
        ((300, 200), 96, 1, (96, 64)),
        ((4, 4000), 96, 1, (1, 96)),
        ((40, 400), 48, 8, (8, 48)),
    ],
)
def test_fit_within(size, longest, shortest, expected):
    assert fit_within(*size, longest, shortest) == expected


@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_keeps_the_mean(channels):
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 60, channels), dtype=np.uint8)
    small = resize_images(images, (20, 15))
    assert small.shape == (3, 20, 15, channels) and small.dtype == np.uint8 and small.flags.c_contiguous
    assert np.abs(small.mean((1, 2)) - images.mean((1, 2))).max() < 3
    np.testing.assert_array_equal(resize_images(images, (40, 60)), images)


def test_png_files(tmp_path):
    mask = np.array([[0, 1, 255]], dtype=np.uint8)
    write_png(tmp_path / "mask.png", mask, palette(2))
    with Image.open(tmp_path / "mask.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), mask)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), paint(mask, 2))
