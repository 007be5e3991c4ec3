"""Crops around rare classes of a mask, enlarged to the size of the image."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from petriscope.augment.base import (
    Aimed,
    Classes,
    Probability,
    chosen,
    elsewhere,
    identity,
    in_order,
    of_classes,
    uniform,
)
from petriscope.core.device import upload

Side = Annotated[float, Field(gt=0, le=1)]


class CropAround(Aimed):
    """Crop a window around a random pixel of some classes, and enlarge it. The window lies within the image, and the
    pixel anywhere in the window. Images without these classes do not change.

    Args:
        classes: indices of the classes.
        side: of the window, as a fraction of the image's sides; drawn from this range.
        p: share of the images with these classes that are cropped.
    """

    def __init__(
        self,
        *,
        classes: Classes,
        side: Annotated[tuple[Side, Side], AfterValidator(in_order)] = (0.5, 1.0),
        p: Probability = 0.5,
    ) -> None:
        self.classes, self.side, self.p = classes, side, p

    def matrices(self, masks: Tensor, generator: torch.Generator) -> Tensor:
        batch, height, width = masks.shape
        falls = chosen(batch, self.p, generator)
        side = uniform(batch, *self.side, generator)
        place = torch.rand(batch, 2, generator=generator) - 0.5  # of the pixel in the window, in sides of it
        falls, side, place = (upload(t, masks.device) for t in (falls, side, place))
        wanted = of_classes(masks, self.classes).flatten(1)
        lots = torch.rand(wanted.shape, generator=elsewhere(masks.device, generator), device=masks.device)
        best, pixel = (lots + 1).mul_(wanted).max(1)
        falls = falls & (best > 0)
        out = identity(batch, masks.device)
        for axis, (length, at) in enumerate(((width, pixel % width), (height, pixel // width))):
            free = (1 - side) * length / 2
            center = at + 0.5 - length / 2 + place[:, axis] * side * length
            center = torch.minimum(torch.maximum(center, -free), free)
            out[:, axis, axis] = torch.where(falls, side, 1.0)
            out[:, axis, 2] = torch.where(falls, center, 0.0)
        return out
