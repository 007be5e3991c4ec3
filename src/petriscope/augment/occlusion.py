"""Covering part of a picture."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from petriscope.augment.base import Pixelwise, Probability, chosen


class Cutout(Pixelwise):
    """Cover a square of ``fraction`` of the shorter side with the picture's mean color. DeVries and Taylor, 2017,
    arXiv:1708.04552. The square's center is uniform over the picture, so it may stand partly outside."""

    def __init__(self, *, fraction: Annotated[float, Field(ge=0, le=1)] = 0.25, p: Probability = 0.5) -> None:
        self.fraction, self.p = fraction, p

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        batch, _, height, width = images.shape
        side = round(self.fraction * min(height, width)) * chosen(batch, self.p, generator)
        corner_y = torch.randint(0, height, (batch,), generator=generator) - side // 2
        corner_x = torch.randint(0, width, (batch,), generator=generator) - side // 2
        ys, xs = torch.arange(height), torch.arange(width)
        rows = (ys >= corner_y[:, None]) & (ys < (corner_y + side)[:, None])
        columns = (xs >= corner_x[:, None]) & (xs < (corner_x + side)[:, None])
        covered = (rows[:, None, :, None] & columns[:, None, None, :]).to(images.device)
        return torch.where(covered, images.mean((2, 3), keepdim=True), images)
