"""Tone operations agree with Pillow's on whole bytes."""

import numpy as np
import pytest
import torch
from augmenting import plain, run, some_images
from PIL import Image, ImageEnhance, ImageOps

from petriscope.augment import tone


def sharpened(factor):
    return lambda image: ImageEnhance.Sharpness(image).enhance(factor)


AGAINST = {
    "posterize": (lambda x: tone.posterize(x, torch.full((len(x),), 3.0)), lambda x: ImageOps.posterize(x, 3), 0),
    "solarize": (lambda x: tone.solarize(x, torch.full((len(x),), 0.5)), lambda x: ImageOps.solarize(x, 128), 0),
    "invert": (tone.invert, ImageOps.invert, 0),
    "auto-contrast": (tone.auto_contrast, ImageOps.autocontrast, 1),
    "sharper": (lambda x: tone.sharpness(x, torch.full((len(x),), 1.6)).clamp(0, 1), sharpened(1.6), 2),
    "softer": (lambda x: tone.sharpness(x, torch.full((len(x),), 0.3)).clamp(0, 1), sharpened(0.3), 1),
}


def bytes_of(pixels):
    return (pixels * 255).round().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("name", AGAINST)
@pytest.mark.parametrize("channels", [1, 3])
def test_as_pillow_does(name, channels):
    ours, theirs, tolerance = AGAINST[name]
    wide = some_images(4, 20, 31, channels)
    dull = wide // 3 + 60
    flat = torch.full_like(wide, 77)
    for images in (wide, dull, flat):
        for image, expected in zip(bytes_of(ours(plain(images))), images.numpy(), strict=True):
            expected = np.asarray(theirs(Image.fromarray(expected.squeeze()))).reshape(image.shape)
            assert np.abs(image - expected).max() <= tolerance


def test_equalize_is_pillows_where_its_step_is_whole():
    dull = torch.randint(60, 130, (4, 1024, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    dull[:, 1020:] = 200  # so 255 * 4 pixels lie below the brightest
    images = dull.view(4, 32, 32, 1)
    expected = [np.asarray(ImageOps.equalize(Image.fromarray(image.squeeze(2)))) for image in images.numpy()]
    assert np.array_equal(bytes_of(tone.equalize(plain(images)))[..., 0], np.stack(expected))


def test_equalize_makes_values_about_equally_frequent_in_small_images_too():
    dull = some_images(4, 12, 12) // 8 + 100
    ours = tone.equalize(plain(dull))
    quarters = torch.histc(ours, 4, 0, 1) / ours.numel()
    assert ((quarters > 0.2) & (quarters < 0.3)).all()
    flat = torch.full((1, 6, 6, 1), 77, dtype=torch.uint8)
    assert torch.equal(tone.equalize(plain(flat)), plain(flat))


def test_levels_that_posterize_leaves():
    images = some_images(200, 4, 4)
    out = run("posterize", images, bits=5, p=1)
    lost = {int(((image * 255).round().int() & 7).max() == 0) for image in out}
    assert lost == {0, 1}  # some lost three bits, some fewer
    assert ((out * 255).round().int() <= plain(images).mul(255).round().int()).all()


def test_solarize_never_touches_what_is_below_the_threshold():
    images = some_images(64)
    out = run("solarize", images, threshold=0.6, p=1)
    below = plain(images) <= 0.6
    assert torch.equal(out[below], plain(images)[below])
    assert not torch.equal(out, plain(images))
