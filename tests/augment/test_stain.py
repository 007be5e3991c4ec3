"""Stain jitter: amounts of dye are multiplied, and nothing else changes."""

import numpy as np
import pytest
import torch

from petriscope.augment.stain import DYES, StainJitter


@pytest.mark.parametrize("dyes", DYES)
def test_the_amounts_of_both_dyes_are_multiplied_by_one_factor_each_a_image(dyes):
    amounts = np.random.default_rng(0).uniform(0.1, 0.8, (6, 2, 25))
    colors = np.exp(-np.einsum("bdn,dc->bcn", amounts, DYES[dyes]))
    images = torch.from_numpy(colors).float().view(6, 3, 5, 5)
    out = StainJitter(amount=0.5, dyes=dyes, p=1)(images, torch.Generator().manual_seed(0))
    densities = -np.log(out.double().numpy().reshape(6, 3, 25))
    found = np.stack([np.linalg.lstsq(np.array(DYES[dyes]).T, image, rcond=None)[0] for image in densities])
    factors = found / amounts
    assert np.ptp(factors, axis=2).max() < 1e-4
    each = factors.mean(2)
    assert (each >= 0.5).all() and (each <= 1.5).all()
    assert len(np.unique(each.round(4))) == each.size


def test_white_and_black_stay_and_no_color_turns_into_nan():
    jitter, generator = StainJitter(amount=1, p=1), torch.Generator().manual_seed(0)
    assert (jitter(torch.ones(4, 3, 2, 2), generator) == 1).all()
    assert (jitter(torch.zeros(4, 3, 2, 2), generator) == 0).all()
    pure = torch.eye(3)[:, :, None, None].repeat(3, 1, 2, 2)
    assert jitter(pure, generator).isfinite().all()


def test_a_gray_image_gets_darker_or_lighter_by_a_power():
    images = torch.linspace(0.1, 0.9, 16).view(1, 1, 4, 4).repeat(8, 1, 1, 1)
    out = StainJitter(amount=0.5, p=1)(images, torch.Generator().manual_seed(0))
    powers = (out.log() / images.log()).flatten(1)
    assert (powers.amax(1) - powers.amin(1)).max() < 1e-4
    assert powers.min() >= 0.5 and powers.max() <= 1.5 and len(powers[:, 0].unique()) == 8
