"""Drawn patterns, from fine grain to clouds, mixed into the image."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from petriscope.augment.base import Magnitude, Pixelwise, Probability, change_some, chosen, elsewhere, in_order, uniform

Steepness = Annotated[float, Field(ge=0, le=6)]


class PatternMix(Pixelwise):
    """Add a random pattern to the image, or multiply the image by one. Patterns are noise whose power falls with frequency, as
    1 / f^steepness: grain at 0, natural textures about 2, clouds and uneven light above. They have any saturation. After PixMix
    (Hendrycks et al., 2022, arXiv:2112.05135), which mixes in pictures of fractals.

    Args:
        amount: greatest standard deviation: of what is added, in half the full range; of the logarithm of what is
            multiplied.
        steepness: least and greatest.
    """

    def __init__(
        self,
        *,
        amount: Magnitude = 0.3,
        steepness: Annotated[tuple[Steepness, Steepness], AfterValidator(in_order)] = (1.0, 4.0),
        p: Probability = 0.5,
    ) -> None:
        self.amount, self.steepness, self.p = amount, steepness, p

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        batch = len(images)
        falls, added = chosen(batch, self.p, generator), chosen(batch, 0.5, generator)
        amount, steepness = uniform(batch, 0, self.amount, generator), uniform(batch, *self.steepness, generator)
        color = uniform(batch, 0, 1, generator)
        there = elsewhere(images.device, generator)

        def mixed(some: Tensor, amount: Tensor, steepness: Tensor, color: Tensor, added: Tensor) -> Tensor:
            pattern = patterns(some, steepness, color, there) * amount[:, None, None, None]
            return torch.where(added[:, None, None, None], some + pattern / 2, some * pattern.exp())

        return change_some(images, falls, mixed, amount, steepness, color, added)


def patterns(images: Tensor, steepness: Tensor, color: Tensor, generator: torch.Generator) -> Tensor:
    """Patterns for images, float32 [B, C, H, W], of mean 0 and standard deviation 1.

    Args:
        steepness: float32 [B].
        color: 0 for gray patterns, 1 for channels of their own; float32 [B].
        generator: on the images' device.
    """
    batch, channels, height, width = images.shape
    down = torch.fft.fftfreq(height, device=images.device)[:, None]
    across = torch.fft.rfftfreq(width, device=images.device)[None, :]
    frequency = (down**2 + across**2).sqrt()
    falloff = frequency.clamp_min(1e-3) ** (-steepness[:, None, None] / 2) * (frequency > 0)
    lots = torch.randn(batch, channels, *frequency.shape, 2, generator=generator, device=images.device)
    noise = torch.fft.irfft2(torch.view_as_complex(lots) * falloff[:, None], s=(height, width))
    noise = noise / noise.std((1, 2, 3), keepdim=True, correction=0).clamp_min(1e-12)
    noise = torch.lerp(noise.mean(1, keepdim=True), noise, color[:, None, None, None])
    return noise / noise.std((1, 2, 3), keepdim=True, correction=0).clamp_min(1e-6)
