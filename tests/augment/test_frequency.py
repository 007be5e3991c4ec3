"""What is changed in the spectrum is what it says."""

import math

import pytest
import torch
from augmenting import plain, run, some_images

from petriscope.augment.frequency import filter_octaves, mix_amplitudes


def amplitudes(images):
    return torch.fft.rfft2(images).abs()


@pytest.mark.parametrize("size", [(12, 12), (9, 16)])
def test_amplitudes_are_mixed_and_phases_kept(size):
    generator = torch.Generator().manual_seed(0)
    images, others = torch.rand(2, 4, 3, *size, generator=generator)
    share = torch.tensor([0.0, 0.3, 0.5, 1.0])
    out = mix_amplitudes(images, others, share)
    torch.testing.assert_close(out[0], images[0], atol=1e-5, rtol=0)
    weights = share[:, None, None, None]
    expected = (1 - weights) * amplitudes(images) + weights * amplitudes(others)
    torch.testing.assert_close(amplitudes(out), expected, atol=1e-3, rtol=1e-4)
    before, after = torch.fft.rfft2(images), torch.fft.rfft2(out)
    turned = (after * before.conj()).angle()[expected > 0.1]
    assert turned.abs().max() < 1e-2


def test_a_full_share_has_the_mean_color_of_another_image_of_the_batch():
    levels = torch.tensor([40, 90, 140, 190], dtype=torch.uint8).repeat_interleave(16)
    images = levels[:, None, None, None].expand(-1, 8, 8, 3) + some_images(64, 8, 8) // 32
    out = run("amplitude-mix", images, share=(1, 1), p=1)
    means, before = out.mean((1, 2, 3)), plain(images).mean((1, 2, 3))
    torch.testing.assert_close(means.sort().values, before.sort().values, atol=2e-3, rtol=0)
    assert ((means - before).abs() > 0.1).sum() > 20


def wave(cycles, side=64):
    at = torch.arange(side) * (2 * math.pi * cycles / side)
    return 0.5 + 0.2 * torch.cos(at).expand(1, 1, side, side)


@pytest.mark.parametrize(("cycles", "octave"), [(32, 0), (16, 1), (8, 2), (4, 3), (2, 3)])
def test_each_octave_has_its_own_factor(cycles, octave):
    gains = torch.tensor([[1.0, -1.0, 0.5, -2.0]])
    inner = slice(20, 44)  # away from the mirrored border
    out = filter_octaves(wave(cycles), gains)[..., inner, inner] - 0.5
    was = wave(cycles)[..., inner, inner] - 0.5
    assert float((out * was).sum() / (was * was).sum()) == pytest.approx(2 ** float(gains[0, octave]), rel=0.15)


def test_the_mean_of_a_flat_image_stays():
    flat = torch.full((4, 3, 20, 30), 0.3)
    gains = torch.tensor([[2.0], [1.0], [-1.0], [-4.0]])
    torch.testing.assert_close(filter_octaves(flat, gains), flat, atol=1e-5, rtol=0)


def test_jitter_both_sharpens_and_smooths():
    images = some_images(64, 24, 24)
    ratio = run("spectrum-jitter", images // 2 + 64, amount=2, p=1).std((1, 2, 3)) / plain(images // 2 + 64).std(
        (1, 2, 3)
    )
    assert (ratio > 1.2).any()
    assert (ratio < 0.8).any()
