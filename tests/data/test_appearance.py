"""Measures of how images look: background, stain, size of the objects, sharpness."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from petriscope.data.appearance import measure


def disc(
    light: tuple[int, ...] = (240, 230, 220), density: float = 0.8, diameter: float = 0.5, side: int = 96
) -> torch.Tensor:
    """An image, uint8 [1, side, side, C], of one disc before an even background."""
    at = np.arange(side) - (side - 1) / 2
    inside = np.hypot(*np.meshgrid(at, at)) <= diameter * side / 2
    shade = np.where(inside, np.exp(-density), 1.0)
    return torch.from_numpy((shade[..., None] * np.array(light)).round().astype(np.uint8))[None]


@given(light=st.tuples(*[st.integers(150, 255)] * 3), density=st.floats(0.2, 1.2), diameter=st.floats(0.25, 0.8))
def test_the_measures_are_those_of_the_drawn_disc(light: tuple[int, ...], density: float, diameter: float) -> None:
    found = measure(disc(light, density, diameter))
    assert found.background[0].tolist() == pytest.approx(light)
    assert found.stain.item() == pytest.approx(density, abs=0.03)
    assert found.size.item() == pytest.approx(diameter, abs=0.03)


def test_a_gray_image_is_measured_like_a_color_image() -> None:
    color, gray = measure(disc((200,) * 3)), measure(disc((200,)))
    assert gray.background.shape == (1, 1)
    for name in ("stain", "size", "sharpness"):
        assert getattr(gray, name).item() == pytest.approx(getattr(color, name).item(), rel=1e-5)


def test_a_blurred_image_is_less_sharp_and_noise_is_sharper() -> None:
    plain = disc()
    soft = (
        F.avg_pool2d(plain.permute(0, 3, 1, 2).float(), 7, 1, 3, count_include_pad=False)
        .permute(0, 2, 3, 1)
        .to(torch.uint8)
    )
    noise = torch.randint(0, 256, plain.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert measure(soft).sharpness < measure(plain).sharpness < measure(noise).sharpness


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 3), (96, 4, 3), (28, 28, 1)])
def test_an_image_of_one_color_has_a_background_and_nothing_else(shape: tuple[int, int, int]) -> None:
    found = measure(torch.full((2, *shape), 90, dtype=torch.uint8))
    assert found.background.flatten().tolist() == pytest.approx([90.0] * 2 * shape[2])
    assert all(getattr(found, name).isnan().all() for name in ("stain", "size", "sharpness"))


def test_an_image_is_measured_by_itself() -> None:
    images = torch.cat([disc(), disc((180, 170, 200), 0.4, 0.3), torch.zeros(1, 96, 96, 3, dtype=torch.uint8)])
    whole = measure(images)
    for row in range(len(images)):
        alone = measure(images[row : row + 1])
        for name in ("background", "stain", "size", "sharpness"):
            torch.testing.assert_close(getattr(alone, name)[0], getattr(whole, name)[row], equal_nan=True)
