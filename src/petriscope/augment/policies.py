"""Policies: each image draws its own operations from a list.

The drawn shears, shifts and rotations go into the image's one matrix, its brightness, contrast and saturation into its one
map of color, and only the remaining operations are applied separately, to the images that drew them. Unlike in the papers,
border pixels are mirrored rather than black, shifts are by whole pixels, and the operations of an image are applied in the
order of the pipeline: geometry, color, tone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from petriscope.augment import tone
from petriscope.augment.base import (
    Color,
    Geometric,
    Operation,
    Pixelwise,
    Policy,
    Probability,
    change_some,
    chosen,
    identity,
    uniform,
)
from petriscope.augment.color import brightness, compose, contrast, mapped, saturation, unchanged
from petriscope.augment.families import Family, kept
from petriscope.augment.pipeline import move_and_change
from petriscope.core.device import upload

STRONGEST = 30  # of the papers' scale of magnitudes

# Operation -> what it does at full strength: shear as a slope, translation in sides, rotation in degrees, the color
# operations and sharpness as a distance of their factor from 1, posterize in bits lost, solarize as a distance of the
# threshold from 1. The others have no strength.
Menu = dict[str, float]

RAND_AUGMENT: Menu = {
    "identity": 0,
    "shear-x": 0.3,
    "shear-y": 0.3,
    "translate-x": 150 / 331,
    "translate-y": 150 / 331,
    "rotate": 30,
    "brightness": 0.9,
    "saturation": 0.9,
    "contrast": 0.9,
    "sharpness": 0.9,
    "posterize": 4,
    "solarize": 1,
    "auto-contrast": 0,
    "equalize": 0,
}
# The paper's wide space; it shifts by 32 pixels of ImageNet's 224.
TRIVIAL_AUGMENT: Menu = RAND_AUGMENT | {
    "shear-x": 0.99,
    "shear-y": 0.99,
    "translate-x": 32 / 224,
    "translate-y": 32 / 224,
    "rotate": 135,
    "brightness": 0.99,
    "saturation": 0.99,
    "contrast": 0.99,
    "sharpness": 0.99,
    "posterize": 6,
}
AUG_MIX: Menu = {
    "identity": 0,
    "shear-x": 0.3,
    "shear-y": 0.3,
    "translate-x": 1 / 3,
    "translate-y": 1 / 3,
    "rotate": 30,
    "posterize": 4,
    "solarize": 1,
    "auto-contrast": 0,
    "equalize": 0,
}


def _menu_without(menu: Menu, left_out: tuple[Family, ...], policy: str) -> Menu:
    return {name: menu[name] for name in kept(menu, left_out, policy)}


class RandAugment(Policy):
    """Apply operations drawn from a list of 14, for each image with replacement, all with the same magnitude and each in
    a random direction. Cubuk et al., 2020, arXiv:1909.13719.

    Args:
        operations: number of operations per image.
        magnitude: on the paper's scale, 0 to 30.
        left_out: families of which nothing is drawn; see `petriscope.augment.families`.
        p: share of the images that are augmented.
    """

    def __init__(
        self,
        *,
        operations: Annotated[int, Field(ge=0, le=14)] = 2,
        magnitude: Annotated[float, Field(ge=0, le=STRONGEST)] = 9.0,
        left_out: tuple[Family, ...] = (),
        p: Probability = 1.0,
    ) -> None:
        self.menu = _menu_without(RAND_AUGMENT, left_out, "rand-augment")
        self.colors = "also" if "saturation" in self.menu else ""
        self.operations, self.magnitude, self.p = operations, magnitude, p

    def draw(self, batch: int, generator: torch.Generator) -> list[Operation]:
        there = chosen(batch, self.p, generator)[:, None].expand(batch, self.operations)
        strength = torch.full((batch, self.operations), self.magnitude / STRONGEST)
        return Drawn.of(self.menu, there, strength, generator).operations()


class TrivialAugment(Policy):
    """Apply one operation from a list of 14 with a magnitude from none to very strong, both drawn for each image. Müller
    and Hutter, 2021, arXiv:2103.10158, with the wide augmentation space.

    Args:
        left_out: families of which nothing is drawn; see `petriscope.augment.families`.
    """

    def __init__(self, *, left_out: tuple[Family, ...] = (), p: Probability = 1.0) -> None:
        self.menu, self.p = _menu_without(TRIVIAL_AUGMENT, left_out, "trivial-augment"), p
        self.colors = "also" if "saturation" in self.menu else ""

    def draw(self, batch: int, generator: torch.Generator) -> list[Operation]:
        there = chosen(batch, self.p, generator)[:, None]
        strength = torch.randint(0, STRONGEST + 1, (batch, 1), generator=generator) / STRONGEST
        return Drawn.of(self.menu, there, strength, generator).operations()


class AugMix(Pixelwise):
    """Mix the image with a weighted mean of differently augmented copies of itself. Hendrycks et al., 2020,
    arXiv:1912.02781; the loss ``consistency`` is the paper's. Not for masks, because the copies are moved differently.

    Args:
        width: number of copies.
        depth: largest number of operations per copy; the number is drawn from [1, depth].
        severity: greatest magnitude, 0 to 10.
        alpha: the weights are drawn from Dirichlet(alpha, ...), the image's own share from Beta(alpha, alpha).
        left_out: families of which nothing is drawn; see `petriscope.augment.families`.
        p: share of the images that are augmented.
    """

    for_masks = False

    def __init__(
        self,
        *,
        width: Annotated[int, Field(ge=1, le=8)] = 3,
        depth: Annotated[int, Field(ge=1, le=8)] = 3,
        severity: Annotated[float, Field(ge=0, le=10)] = 3.0,
        alpha: Annotated[float, Field(gt=0)] = 1.0,
        left_out: tuple[Family, ...] = (),
        p: Probability = 1.0,
    ) -> None:
        self.menu = _menu_without(AUG_MIX, left_out, "aug-mix")
        self.width, self.depth, self.severity, self.alpha, self.p = width, depth, severity, alpha, p

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return change_some(images, chosen(len(images), self.p, generator), lambda rows: self._mixed(rows, generator))

    def _mixed(self, images: Tensor, generator: torch.Generator) -> Tensor:
        batch = len(images)
        copies = batch * self.width
        there = torch.arange(self.depth) < torch.randint(1, self.depth + 1, (copies, 1), generator=generator)
        top = self.severity / 10
        strength = uniform(copies * self.depth, min(0.01, top), top, generator).view(copies, self.depth)
        drawn = Drawn.of(self.menu, there, strength, generator).operations()
        chains = move_and_change(images.repeat_interleave(self.width, 0), drawn, generator, self.groups)
        weights, share = blend_weights(batch, self.width, self.alpha, generator)
        return blended(images, chains, weights, share)


def blend_weights(batch: int, width: int, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """How much each copy of an image counts, from Dirichlet(alpha, ...), float32 [B, width]; and the share of the copies in
    the result, from Beta(alpha, alpha), float32 [B]."""
    seed = int(torch.randint(2**31, (), generator=generator))  # torch draws no Beta from a generator of one's own
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet([alpha] * width, batch).astype(np.float32)
    return torch.from_numpy(weights), torch.from_numpy(rng.beta(alpha, alpha, batch).astype(np.float32))


def blended(images: Tensor, copies: Tensor, weights: Tensor, share: Tensor) -> Tensor:
    """Mix images with the weighted mean of their copies.

    Args:
        images: float32 [B, C, H, W].
        copies: float32 [B * width, C, H, W], those of one image side by side.
        weights: float32 [B, width], on the CPU; they add up to 1.
        share: of the copies, float32 [B], on the CPU.
    """
    batch, width = weights.shape
    blend = upload(weights, images.device)[:, None, :] @ copies.reshape(batch, width, -1)
    return torch.lerp(images, blend.view(images.shape), upload(share, images.device)[:, None, None, None])


@dataclass(frozen=True)
class Drawn:
    """Which operations each of B images drew, n one after another.

    Args:
        menu: what there was to draw from.
        kind: int64 [B, n], into the menu; 0 is the identity.
        amount: float32 [B, n], signed, in the menu's units.
        strength: float32 [B, n], of 0 to 1.
    """

    menu: Menu
    kind: Tensor
    amount: Tensor
    strength: Tensor

    @classmethod
    def of(cls, menu: Menu, there: Tensor, strength: Tensor, generator: torch.Generator) -> Drawn:
        """Draw kinds and directions.

        Args:
            menu: to draw from, the identity first.
            there: bool [B, n], False where no operation is to be.
            strength: float32 [B, n], of 0 to 1.
        """
        kind = torch.randint(0, len(menu), there.shape, generator=generator) * there
        sign = torch.randint(0, 2, there.shape, generator=generator) * 2 - 1
        full = torch.tensor(list(menu.values()), dtype=torch.float32)
        return cls(menu, kind, sign * strength * full[kind], strength)

    def operations(self) -> list[Operation]:
        colored = any(name in self.menu for name in ("brightness", "contrast", "saturation"))
        return [_Moves(self), *([_Colors(self)] if colored else []), _Tones(self)]

    def where(self, name: str) -> Tensor:
        """Which drew the operation, bool [B, n]."""
        return self.kind == list(self.menu).index(name) if name in self.menu else torch.zeros_like(self.kind).bool()

    def amount_of(self, name: str) -> Tensor:
        """Its signed amount, float32 [B, n]; 0 where another was drawn."""
        return self.amount * self.where(name)


class _Moves(Geometric):
    """The geometry of a draw."""

    def __init__(self, drawn: Drawn) -> None:
        self.drawn = drawn

    def matrices(self, batch: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        of = self.drawn.amount_of
        angle = of("rotate") * (math.pi / 180)
        # In each place one operation at most differs from nothing, so one matrix can name them all.
        maps = identity(angle.numel()).view(*angle.shape, 3, 3)
        maps[..., 0, 0] = maps[..., 1, 1] = angle.cos()
        maps[..., 0, 1] = of("shear-x") - angle.sin()
        maps[..., 1, 0] = of("shear-y") + angle.sin()
        maps[..., 0, 2] = (of("translate-x") * size[1]).round()
        maps[..., 1, 2] = (of("translate-y") * size[0]).round()
        total = identity(batch)
        for layer in maps.unbind(1):
            total = total @ layer
        return total


class _Colors(Color):
    """Brightness, contrast and saturation of a draw."""

    def __init__(self, drawn: Drawn) -> None:
        self.drawn = drawn

    def matrices(self, mean: Tensor, generator: torch.Generator) -> Tensor:
        nothing = total = unchanged(mean)
        changes = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        factors = {name: upload(1 + self.drawn.amount_of(name), mean.device) for name in changes}
        for place in range(self.drawn.kind.shape[1]):
            moved = mapped(mean, total)
            # Two of the three do nothing, so what the three add to nothing is what the third one adds.
            added = [change(moved, factors[name][:, place]) - nothing for name, change in changes.items()]
            total = compose(total, nothing + added[0] + added[1] + added[2])
        return total


class _Tones(Pixelwise):
    """All else of a draw."""

    def __init__(self, drawn: Drawn) -> None:
        self.drawn = drawn

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        drawn = self.drawn
        changes: dict[str, tuple[Callable[..., Tensor], Tensor | None]] = {
            "sharpness": (tone.sharpness, 1 + drawn.amount),
            "posterize": (tone.posterize, 8 - drawn.amount.abs().round()),
            "solarize": (tone.solarize, 1 - drawn.strength),
            "auto-contrast": (tone.auto_contrast, None),
            "equalize": (tone.equalize, None),
        }
        out = images.clone()
        for name, (change, values) in changes.items():
            for place, falls in enumerate(drawn.where(name).unbind(1)):
                change_some(out, falls, change, *([] if values is None else [values[:, place]]), out=out)
        return out
