"""The corruptions of the stress test as an augmentation, at any severity."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from petriscope.augment.base import Pixelwise, Probability, chosen, colors_among, in_order, uniform
from petriscope.augment.corruptions import CORRUPTIONS, Corruption
from petriscope.augment.families import Family, kept
from petriscope.core.device import upload
from petriscope.core.errors import RequestError, near

Severity = Annotated[float, Field(ge=0, le=5)]


def _known(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in CORRUPTIONS:
            raise ValueError(f"no corruption {name!r}; {near(name, CORRUPTIONS)}")
    if not {name for name in CORRUPTIONS if not CORRUPTIONS[name].moves} - set(names):
        raise ValueError("every corruption is held out: leave some to train with")
    return names


Severities = Annotated[tuple[Severity, Severity], AfterValidator(in_order)]
Names = Annotated[tuple[str, ...], AfterValidator(_known)]


class CorruptionMix(Pixelwise):
    """Apply a random corruption of the stress test to each image, so that the network becomes robust to them. Corruptions
    that move pixels are left out; use `rotate` and `translate` for those.

    Args:
        severity: least and greatest; uniform between them.
        held_out: corruptions that are never drawn, to measure in the stress test how robustness carries over to them.
        left_out: families whose corruptions are never drawn; see `petriscope.augment.families`.
        again: share of the corrupted images that are corrupted a second time.
    """

    def __init__(
        self,
        *,
        severity: Severities = (0.0, 5.0),
        held_out: Names = (),
        left_out: tuple[Family, ...] = (),
        again: Probability = 0.0,
        p: Probability = 0.5,
    ) -> None:
        still = [name for name, corruption in CORRUPTIONS.items() if not corruption.moves and name not in held_out]
        self.names = kept(still, left_out, "corruption-mix")
        self.colors = "also" if any(not CORRUPTIONS[name].gray for name in self.names) else ""
        self.severity, self.held_out, self.left_out, self.again, self.p = severity, held_out, left_out, again, p

    def pool(self, colors: bool) -> list[Corruption]:
        """The corruptions to draw from, for images with or without red, green and blue."""
        there = [CORRUPTIONS[name] for name in self.names]
        pool = [corruption for corruption in there if colors or corruption.gray]
        if not pool:
            raise RequestError(
                f"corruption-mix draws only {' and '.join(self.names)}, which change no gray images: hold out others"
            )
        return pool

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        falls = chosen(len(images), self.p, generator)
        images = self._once(images, falls, generator)
        if self.again > 0:
            images = self._once(images, falls & chosen(len(images), self.again, generator), generator)
        return images

    def _once(self, images: Tensor, falls: Tensor, generator: torch.Generator) -> Tensor:
        batch = len(images)
        pool = self.pool(bool(colors_among(self.groups)) if self.groups else images.shape[1] == 3)
        which = torch.randint(len(pool), (batch,), generator=generator)
        severity = uniform(batch, *self.severity, generator)
        keys = torch.randint(2**62, (batch,), generator=generator)
        out = images.clone(memory_format=torch.contiguous_format)
        for place, corruption in enumerate(pool):
            rows = (falls & (which == place)).nonzero().squeeze(1)
            if len(rows):
                here = upload(rows, images.device)
                some = images.index_select(0, here).contiguous()
                changed = corruption(some.clamp(0, 1), severity[rows], upload(keys[rows], images.device), self.groups)
                out.index_copy_(0, here, changed)
        return out
