"""Changes of the spectrum: amplitudes mixed between images, and random responses to frequency."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from petriscope.augment.base import Pixelwise, Probability, change_some, chosen, in_order, uniform
from petriscope.augment.corruptions.blur import filtered, frequencies

Shares = Annotated[tuple[Probability, Probability], AfterValidator(in_order)]


class AmplitudeMix(Pixelwise):
    """Mix the amplitudes of an image's spectrum with those of another image of the batch, and keep its phases. Amplitudes
    hold color, light and texture, phases the shapes, so the label stays. Xu et al., 2021, arXiv:2105.11182 (the amplitude mix
    of FACT); at a share of 1 the amplitudes are exchanged, as in Chen et al., 2021, arXiv:2108.08487 (APR).

    Args:
        share: least and greatest share of the other image's amplitudes.
    """

    def __init__(self, *, share: Shares = (0.0, 1.0), p: Probability = 0.5) -> None:
        self.share, self.p = share, p

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        batch = len(images)
        share = uniform(batch, *self.share, generator)
        partner = torch.randperm(batch, generator=generator)
        falls = chosen(batch, self.p, generator)

        def mixed(some: Tensor, share: Tensor, partner: Tensor) -> Tensor:
            return mix_amplitudes(some, images.index_select(0, partner), share)

        return change_some(images, falls, mixed, share, partner)


class SpectrumJitter(Pixelwise):
    """Multiply each octave of spatial frequencies by its own random factor: details become weaker or stronger, as if drawn
    by another lens or sharpened by a camera. The image's mean does not change.

    Args:
        amount: the factor of an octave lies between 2^-amount and 2^amount; its logarithm is uniform.
        octaves: number of octaves, from the finest details down; lower frequencies have the factor of the last.
    """

    def __init__(
        self,
        *,
        amount: Annotated[float, Field(ge=0, le=4)] = 1.0,
        octaves: Annotated[int, Field(ge=1, le=8)] = 4,
        p: Probability = 0.5,
    ) -> None:
        self.amount, self.octaves, self.p = amount, octaves, p

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        batch = len(images)
        gains = uniform(batch * self.octaves, -self.amount, self.amount, generator).view(batch, self.octaves)
        return change_some(images, chosen(batch, self.p, generator), filter_octaves, gains)


def mix_amplitudes(images: Tensor, others: Tensor, share: Tensor) -> Tensor:
    """Images with amplitudes (1 - share) * their own + share * those of ``others``.

    Args:
        images, others: float32 [B, C, H, W].
        share: float32 [B].
    """
    spectrum = torch.fft.rfft2(images)
    own = spectrum.abs()
    mixed = torch.lerp(own, torch.fft.rfft2(others).abs(), share[:, None, None, None])
    return torch.fft.irfft2(spectrum * (mixed / own.clamp_min(1e-6)), s=images.shape[2:])


def filter_octaves(images: Tensor, gains: Tensor) -> Tensor:
    """Multiply octaves of the spectrum.

    Args:
        images: float32 [B, C, H, W].
        gains: float32 [B, n], logarithms to base 2 of the factors, the finest octave first. They are interpolated.
    """
    down, across, padding = frequencies(images)
    frequency = (down**2 + across**2).sqrt()
    last = gains.shape[1] - 1
    octave = (-1 - torch.log2(frequency.clamp_min(1e-6))).clamp(0, last)  # 0 at half a cycle per pixel
    below = octave.floor().clamp_max(max(last - 1, 0)).long()
    gain = torch.lerp(gains[:, below], gains[:, (below + 1).clamp_max(last)], octave - below)
    return filtered(images, torch.exp2(gain * (frequency > 0)), padding)
