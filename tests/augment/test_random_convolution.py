"""Random convolutions are convolutions, and keep mean and spread."""

import numpy as np
import pytest
import torch
from augmenting import plain, run, some_images
from scipy.ndimage import correlate

from petriscope.augment.random_convolution import convolve_each, restored


@pytest.mark.parametrize("side", [1, 3, 5])
def test_each_image_is_convolved_by_its_own_kernels(side):
    generator = torch.Generator().manual_seed(0)
    images, kernels = (
        torch.rand(3, 2, 9, 11, generator=generator),
        torch.randn(3, 2, 2, side, side, generator=generator),
    )
    out = convolve_each(images, kernels).numpy()
    for image, kernel, found in zip(images.numpy(), kernels.numpy(), out, strict=True):
        for channel in range(2):
            expected = sum(correlate(image[k], kernel[channel, k], mode="mirror") for k in range(2))
            np.testing.assert_allclose(found[channel], expected, atol=1e-4)


def test_mean_and_spread_of_each_channel_are_restored():
    generator = torch.Generator().manual_seed(0)
    images, like = torch.randn(4, 3, 8, 8, generator=generator) * 5, torch.rand(4, 3, 8, 8, generator=generator)
    out = restored(images, like)
    torch.testing.assert_close(out.mean((2, 3)), like.mean((2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std((2, 3)), like.std((2, 3)), atol=1e-4, rtol=0)
    flat = torch.full((1, 3, 8, 8), 0.4)
    torch.testing.assert_close(restored(flat * 7, flat), flat)


def test_flat_images_and_small_images_stay_as_they_are():
    flat = torch.full((16, 8, 8, 3), 90, dtype=torch.uint8)
    torch.testing.assert_close(run("random-convolution", flat, p=1, share=(1, 1)), plain(flat), atol=1e-4, rtol=0)
    for side in (1, 2):
        assert run("random-convolution", some_images(8, side, side), p=1, size=7).shape == (8, 3, side, side)


def test_repeats_change_more_and_a_size_of_one_mixes_channels_alone():
    images = some_images(64, 12, 12, 1) // 2 + 64
    alone = run("random-convolution", images, p=1, size=1, share=(1, 1))
    likeness = [
        abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for a, b in zip(alone.numpy(), plain(images).numpy(), strict=True)
    ]
    assert min(likeness) > 0.999  # one channel by one number: the image, or its negative
    texture = [run("random-convolution", images, p=1, size=3, repeats=n, share=(1, 1)) for n in (1, 10)]
    assert (texture[0] - texture[1]).abs().amax((1, 2, 3)).gt(0.05).sum() > 30
