"""Patterns have the spectrum and the spread that they should."""

import pytest
import torch
from augmenting import plain, run, some_images

from petriscope.augment.pattern import patterns


def drawn(steepness, color=0.0, batch=64, size=(64, 64), channels=1):
    images = torch.zeros(batch, channels, *size)
    return patterns(
        images, torch.full((batch,), float(steepness)), torch.full((batch,), float(color)), torch.Generator()
    )


@pytest.mark.parametrize("steepness", [0, 2, 4])
def test_power_falls_with_frequency_as_it_should(steepness):
    power = torch.fft.rfft2(drawn(steepness)).abs().square().mean((0, 1))
    low, high = power[0, 4], power[0, 16]  # two octaves apart
    assert float(torch.log2(low / high)) / 2 == pytest.approx(steepness, abs=0.4)


@pytest.mark.parametrize("size", [(64, 64), (20, 33)])
def test_patterns_have_no_mean_and_a_spread_of_one(size):
    found = drawn(2, 0.5, size=size, channels=3)
    torch.testing.assert_close(found.mean((1, 2, 3)), torch.zeros(64), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std((1, 2, 3), correction=0), torch.ones(64), atol=1e-4, rtol=0)


def test_color_is_between_gray_and_channels_of_their_own():
    gray, own = drawn(1, 0, channels=3), drawn(1, 1, channels=3)
    assert torch.equal(gray[:, 0], gray[:, 2])
    assert abs(float((own[:, 0] * own[:, 2]).mean())) < 0.1


def test_half_are_added_and_half_multiplied():
    """Black stays black where the pattern multiplies."""
    black = torch.zeros(200, 8, 8, 1, dtype=torch.uint8)
    added = (run("pattern-mix", black, p=1) > 0).flatten(1).any(1)
    assert 70 < added.sum() < 130


def test_amount_strengthens():
    images = some_images(64, 16, 16) // 2 + 64
    change = lambda amount: (run("pattern-mix", images, amount=amount, p=1) - plain(images)).abs().mean()  # noqa: E731
    assert change(0.6) > 2 * change(0.2) > 0
