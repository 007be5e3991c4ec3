"""Chains of operations of all families, mixed."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from petriscope.augment import AUGMENTATIONS
from petriscope.augment.base import Color, Pixelwise, Probability, change_some, chosen, colors_among, uniform
from petriscope.augment.corruption_mix import Severities
from petriscope.augment.corruptions import CORRUPTIONS, Corruption
from petriscope.augment.families import FAMILIES, GENERAL, Family, family_of, kept
from petriscope.augment.pipeline import apply_pixels
from petriscope.augment.policies import blend_weights, blended
from petriscope.core.device import upload
from petriscope.core.recipe import Part

STILL = tuple(name for name, corruption in CORRUPTIONS.items() if not corruption.moves)
# The operations beside the corruptions, with options of a wide range.
BESIDE = (
    Part(name="hue", amount=0.15),
    Part(name="stain-jitter", amount=0.6, p=1),
    Part(name="posterize", bits=3, p=1),
    Part(name="solarize", threshold=0.5, p=1),
    Part(name="equalize", p=1),
    Part(name="auto-contrast", p=1),
    Part(name="sharpness", amount=2, p=1),
    Part(name="spectrum-jitter", p=1),
    Part(name="coarse-dropout", p=1),
    Part(name="hide-patches", share=(0.05, 0.3), p=1),
    Part(name="random-convolution", p=1),
    Part(name="pattern-mix", p=1),
)


class _Corrupting(Pixelwise):
    """One corruption as an operation, which leaves images alone that it cannot change."""

    def __init__(self, corruption: Corruption, severity: tuple[float, float]) -> None:
        self.corruption, self.severity = corruption, severity

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        if not self.corruption.gray and not (colors_among(self.groups) if self.groups else images.shape[1] == 3):
            return images
        severity = uniform(len(images), *self.severity, generator)
        keys = torch.randint(2**62, (len(images),), generator=generator)
        return self.corruption(images, severity, upload(keys, images.device), self.groups)


class WideMix(Pixelwise):
    """Mix differently disturbed copies of the image, as AugMix does (Hendrycks et al., 2020, arXiv:1912.02781), with operations
    of all families: the corruptions of the stress test, others of color, tone, blur and occlusion, and random convolutions
    and patterns. Families are drawn evenly, then an operation of the family. Nothing moves pixels, so copies fit each other
    and masks stay valid; use `rotate`, `scale` and others for that.

    Args:
        width: largest number of copies; the number is drawn from [1, width].
        depth: largest number of operations per copy; the number is drawn from [1, depth].
        severity: least and greatest, of the corruptions.
        alpha: the weights are drawn from Dirichlet(alpha, ...), the image's own share from Beta(alpha, alpha).
        whole: share of the augmented images that get no share of the image itself.
        left_out: families of which nothing is drawn; see `petriscope.augment.families`.
    """

    def __init__(
        self,
        *,
        width: Annotated[int, Field(ge=1, le=8)] = 2,
        depth: Annotated[int, Field(ge=1, le=8)] = 3,
        severity: Severities = (0.0, 4.0),
        alpha: Annotated[float, Field(gt=0)] = 1.0,
        whole: Probability = 0.5,
        left_out: tuple[Family, ...] = (),
        p: Probability = 0.5,
    ) -> None:
        self.width, self.depth, self.alpha, self.whole, self.p = width, depth, alpha, whole, p
        self.menu = kept((*STILL, *(part.name for part in BESIDE)), left_out, "wide-mix")
        self.colors = "also" if any(family_of(name) == "color" for name in self.menu) else ""
        operations: dict[str, Color | Pixelwise] = {part.name: AUGMENTATIONS.build(part) for part in BESIDE}
        for name in STILL:
            operations[name] = _Corrupting(CORRUPTIONS[name], severity)
        self.pool = [
            [operations[name] for name in self.menu if family_of(name) == family] for family in (*FAMILIES, GENERAL)
        ]
        self.pool = [family for family in self.pool if family]

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return change_some(images, chosen(len(images), self.p, generator), lambda rows: self._mixed(rows, generator))

    def _mixed(self, images: Tensor, generator: torch.Generator) -> Tensor:
        batch = len(images)
        there = torch.arange(self.width) < torch.randint(1, self.width + 1, (batch, 1), generator=generator)
        weights, share = blend_weights(batch, self.width, self.alpha, generator)
        weights = weights.clamp_min(1e-6) * there
        share = torch.where(chosen(batch, self.whole, generator), torch.ones(()), share)
        chains = self._chains(images.repeat_interleave(self.width, 0), there.flatten(), generator)
        return blended(images, chains, weights / weights.sum(1, keepdim=True), share)

    def _chains(self, copies: Tensor, there: Tensor, generator: torch.Generator) -> Tensor:
        """Apply from 1 to ``depth`` operations to each of the copies that are there, in place."""
        number = torch.randint(1, self.depth + 1, (len(copies),), generator=generator) * there
        for step in range(self.depth):
            family = torch.randint(len(self.pool), (len(copies),), generator=generator)
            lot = torch.rand(len(copies), generator=generator)
            for place, operations in enumerate(self.pool):
                member = (lot * len(operations)).long()
                for which, operation in enumerate(operations):
                    falls = (number > step) & (family == place) & (member == which)

                    def change(some: Tensor, operation: Color | Pixelwise = operation) -> Tensor:
                        operation.groups = self.groups
                        return apply_pixels(some, [operation], generator, self.groups)

                    change_some(copies, falls, change, out=copies)
        return copies
