"""The same cells with more or less stain, with another balance of the dyes, or seen by another camera."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from petriscope.augment.base import Pixelwise, Probability, change_some, chosen, in_order, uniform
from petriscope.data.appearance import LEAST, background

Factor = Annotated[float, Field(ge=0, le=10)]
Factors = Annotated[tuple[Factor, Factor], AfterValidator(in_order)]
DYES = {
    "giemsa": ((0.835, 0.514, 0.196), (0.093, 0.954, 0.283)),  # methylene blue, eosin
    "he": ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11)),  # hematoxylin, eosin
}
"""How much red, green and blue each dye absorbs: for H&E as measured by Ruifrok and Johnston (2001), for Giemsa as in
Landini's Colour Deconvolution plugin for ImageJ."""


class StainJitter(Pixelwise):
    """Multiply the amounts of two dyes, and the residual absorption, by separate factors from [1 - amount, 1 + amount]. The
    white background, which is not stained, does not change; gray images get darker or lighter.

    Light falls off exponentially with the amount of a dye (the Beer-Lambert law), so the logarithms of the colors are
    mapped. ``giemsa`` is for blood films, ``he`` (hematoxylin and eosin) for tissue.

    Ruifrok and Johnston, 2001, "Quantification of histochemical staining by color deconvolution"; as an augmentation:
    Tellez et al., 2019, arXiv:1902.06543.
    """

    colors = "only"

    def __init__(
        self,
        *,
        amount: Annotated[float, Field(ge=0, le=1)] = 0.3,
        dyes: Literal["giemsa", "he"] = "giemsa",
        p: Probability = 0.5,
    ) -> None:
        self.amount, self.p = amount, p
        first, second = torch.tensor(DYES[dyes])
        both = torch.stack([first, second, torch.linalg.cross(first, second)])
        self.dyes = both / both.norm(dim=1, keepdim=True)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        factors = 1 + (2 * torch.rand(len(images), 3, generator=generator) - 1) * self.amount
        if images.shape[1] == 1:
            maps = factors[:, :1, None]
        else:
            maps = (torch.linalg.inv(self.dyes) @ (factors[:, :, None] * self.dyes)).mT
        return change_some(images, chosen(len(images), self.p, generator), stain, maps)


class AbsorbanceJitter(Pixelwise):
    """Multiply the optical density of each channel by its own factor. Cameras and lamps differ in the colors that their red,
    green and blue stand for, and so in how much of a dye each channel sees. The background keeps its color.

    Args:
        span: least and greatest factor; uniform and independent per channel.
    """

    colors = "only"

    def __init__(self, *, span: Factors = (0.3, 1.5), p: Probability = 0.5) -> None:
        self.span, self.p = span, p

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        batch, channels = images.shape[:2]
        factors = uniform(batch * channels, *self.span, generator).view(batch, channels)
        return change_some(images, chosen(batch, self.p, generator), absorb, factors)


def absorb(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply the optical densities of images, float32 [B, C, H, W] in [0, 1], by factors, [B, C]. Black stays black."""
    light = background(images).clamp_min(LEAST).log()[:, :, None, None]
    density = light - images.clamp_min(LEAST).log()
    return images * ((1 - factors[:, :, None, None]) * density).exp()


def stain(images: Tensor, maps: Tensor) -> Tensor:
    """Map the optical densities of images, float32 [B, C, H, W] in [0, 1], by matrices [B, C, C]. Black stays black."""
    logarithms = images.clamp(1 / 255, 1).log().flatten(2)
    added = torch.bmm(maps - torch.eye(images.shape[1], device=maps.device), logarithms)
    return images * added.exp().view_as(images)
