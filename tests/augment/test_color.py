"""Color maps, noise and blur."""

import numpy as np
import torch
from augmenting import augmented, plain, run, some_images

from petriscope.augment import AUGMENTATIONS
from petriscope.augment.noise_and_blur import gaussian_blur
from petriscope.augment.pipeline import Normalize, apply_pixels
from petriscope.core.recipe import Part


class TestColor:
    def test_brightness_multiplies(self):
        images = torch.full((500, 2, 2, 3), 100, dtype=torch.uint8)
        factors = run("brightness", images, amount=0.5)[:, 0, 0, 0] * 255 / 100
        assert 0.5 <= factors.min() < 0.55
        assert 1.45 < factors.max() <= 1.5

    def test_contrast_keeps_the_mean_gray(self):
        images = some_images(32, 16, 16) // 2 + 64
        out = run("contrast", images, amount=0.4)
        weights = torch.tensor([0.299, 0.587, 0.114])
        mean = lambda x: x.mean((2, 3)) @ weights  # noqa: E731
        torch.testing.assert_close(mean(out), mean(plain(images)), atol=1e-4, rtol=0)

    def test_saturation_keeps_gray_value(self):
        images = some_images(8) // 4 + 96
        out = run("saturation", images, amount=0.5)
        weights = torch.tensor([0.299, 0.587, 0.114])[None, :, None, None]
        torch.testing.assert_close((out * weights).sum(1), (plain(images) * weights).sum(1), atol=1e-4, rtol=0)

    def test_operations_compose_as_if_one_after_another(self):
        images = some_images(8) // 4 + 96  # far from the ends, where nothing is clamped
        parts = [Part(name="contrast", amount=0.2), Part(name="brightness", amount=0.1)]
        together = augmented(parts, images, seed=3)
        generator = torch.Generator().manual_seed(3)
        one_by_one = plain(images)
        for part in parts:
            one_by_one = apply_pixels(one_by_one, [AUGMENTATIONS.build(part)], generator)
        torch.testing.assert_close(together, one_by_one, atol=1e-5, rtol=0)


def test_blur_is_the_textbook_gaussian():
    from scipy.ndimage import gaussian_filter

    image = torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    ours = gaussian_blur(image, torch.tensor([1.3]), reach=6)[0, 0].numpy()
    theirs = gaussian_filter(image[0, 0].numpy(), 1.3, mode="mirror", radius=6)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_normalize_of_bytes_and_of_floats_agree():
    images = some_images()
    normalize = Normalize((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    expected = (plain(images) - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.2, 0.25, 0.3])[
        :, None, None
    ]
    torch.testing.assert_close(normalize(images), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(normalize(plain(images)), expected, atol=1e-5, rtol=0)
    assert normalize(images).is_contiguous(memory_format=torch.channels_last)
