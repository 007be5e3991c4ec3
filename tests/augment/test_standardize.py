"""Background and stain made alike, image by image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from petriscope.augment.pipeline import Normalize, to_float, to_whole
from petriscope.augment.standardize import DARKEST, MEAN, STD, Standardize
from petriscope.data.appearance import background, darkest, measure
from petriscope.data.sources.synthetic_smear import HOME, OTHER, draw_smear

CELLS = to_float(torch.from_numpy(draw_smear(16, 48)[0]))
HAZY = 0.6 * CELLS + 0.4 * background(CELLS)[:, :, None, None]
LIGHTS = st.tuples(*[st.floats(0.5, 1.0)] * 3)


def apart(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().mean().item()


@given(light=LIGHTS)
def test_the_color_of_the_light_does_not_matter(light: tuple[float, float, float]) -> None:
    standardize = Standardize(["background"])
    tinted = CELLS * torch.tensor(light)[:, None, None]
    torch.testing.assert_close(standardize(tinted), standardize(CELLS), atol=1e-5, rtol=1e-4)


@given(light=LIGHTS, gain=st.tuples(*[st.floats(0.7, 1.2)] * 3))
def test_neither_light_nor_the_strength_of_the_stain_matter(
    light: tuple[float, float, float], gain: tuple[float, float, float]
) -> None:
    standardize = Standardize(["background", "stain"])
    plain = CELLS.clamp_min(0.05)
    white = background(plain)[:, :, None, None]
    stained = white * (plain / white) ** torch.tensor(gain)[:, None, None] * torch.tensor(light)[:, None, None]
    assert apart(standardize(stained), standardize(plain)) < 0.01


@given(light=LIGHTS, stray=st.tuples(*[st.floats(0.0, 0.15)] * 3))
def test_neither_light_nor_stray_light_matters(
    light: tuple[float, float, float], stray: tuple[float, float, float]
) -> None:
    standardize = Standardize(["background", "stray-light"])
    share = torch.tensor(stray)[:, None, None]
    hazy = (HAZY * (1 - share) + share * background(HAZY)[:, :, None, None]) * torch.tensor(light)[:, None, None]
    torch.testing.assert_close(standardize(hazy), standardize(HAZY), atol=1e-4, rtol=1e-3)


def test_the_darkest_parts_become_as_dark_as_is_said_and_the_background_stays_white() -> None:
    gray = HAZY * 0.9 + 0.1 * background(HAZY)[:, :, None, None]
    for out in (Standardize(["background", "stray-light"])(each) for each in (HAZY, gray)):
        torch.testing.assert_close(darkest(out), torch.tensor(DARKEST).expand(len(HAZY), 3), atol=1e-3, rtol=1e-2)
        assert (background(out) > 0.98).all() and 0 <= out.min() <= out.max() <= 1


def test_an_image_without_an_object_gets_no_more_than_four_times_the_contrast() -> None:
    noise = (0.9 + 0.01 * torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    out = Standardize(["background", "stray-light"])(noise)
    assert out.std() < 4.5 * (noise / 0.9).std()


def test_the_background_becomes_white_and_the_stain_of_the_mean_and_spread_that_are_said() -> None:
    out = Standardize(["background", "stain"])(CELLS)
    assert out.shape == CELLS.shape
    assert 0 <= out.min() <= out.max() <= 1
    assert (background(Standardize(["background"])(CELLS)) > 0.98).all()
    spread, mean = torch.std_mean(-out.clamp_min(1 / 255).log(), (2, 3))
    torch.testing.assert_close(mean.median(0).values, torch.tensor(MEAN), atol=0.02, rtol=0.1)
    torch.testing.assert_close(spread.median(0).values, torch.tensor(STD), atol=0.03, rtol=0.15)


def test_stain_alone_keeps_the_color_of_the_background() -> None:
    out = Standardize(["stain"])(CELLS)
    assert apart(background(out), background(CELLS)) < 0.02
    assert apart(background(Standardize(["background"])(CELLS)), background(CELLS)) > 0.05


def test_two_microscopes_look_more_alike_afterwards() -> None:
    home, other = (to_float(torch.from_numpy(draw_smear(200, 48, microscope=each)[0])) for each in (HOME, OTHER))

    def gaps(standardize: Standardize) -> tuple[float, float]:
        """Of the background and of the stain."""
        one, two = (measure(to_whole(standardize(part), torch.uint8)) for part in (home, other))
        light = (one.background.mean(0) - two.background.mean(0)).abs().max().item()
        return light, abs(math.log(one.stain.nanmedian() / two.stain.nanmedian()))

    plain, white, both = (gaps(Standardize(what)) for what in ([], ["background"], ["background", "stain"]))
    assert white[0] < plain[0] / 5
    assert both[0] < plain[0] / 5 and both[1] < plain[1] / 2


@pytest.mark.parametrize(
    "what", [[], ["background"], ["stray-light"], ["stain"], ["background", "stray-light", "stain"]]
)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_an_image_of_one_color_stays_one(what: list[str], channels: int, value: float) -> None:
    out = Standardize(what)(torch.full((2, channels, 5, 7), value))  # type: ignore[arg-type]
    assert out.isfinite().all()
    assert (out.amax((2, 3)) - out.amin((2, 3))).max() < 1e-6


def test_normalizing_standardizes_bytes_as_it_does_floats() -> None:
    normalize = Normalize((0.5,) * 3, (0.25,) * 3, ["background", "stain"])
    images = torch.from_numpy(draw_smear(8, 32)[0])
    torch.testing.assert_close(normalize(images), normalize(to_float(images)))
    plain = Normalize((0.5,) * 3, (0.25,) * 3)
    assert apart(normalize(images), plain(images)) > 0.1


def test_the_second_microscope_shows_the_same_cells_otherwise() -> None:
    (one, labels), (two, again) = draw_smear(64, 48), draw_smear(64, 48, microscope=OTHER)
    np.testing.assert_array_equal(labels, again)
    home, other = measure(torch.from_numpy(one)), measure(torch.from_numpy(two))
    assert (other.size > home.size).float().mean() > 0.75
    assert (other.stain < home.stain).float().mean() > 0.9
    assert (other.background[:, 2] > other.background[:, 0]).float().mean() > 0.9
