"""What an augmentation is, and the draws they share."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

Probability = Annotated[float, Field(ge=0, le=1)]
Magnitude = Annotated[float, Field(ge=0)]
Classes = Annotated[tuple[Annotated[int, Field(ge=0, lt=255)], ...], Field(min_length=1)]


class Geometric:
    """Moves pixels: one affine map per image, in pixels from the image's center, x before y.

    ``exact``: the map takes pixel centers to pixel centers, so nothing is interpolated.
    """

    exact = False

    def matrices(self, batch: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Maps from output to input coordinates, float32 [B, 3, 3]; the last row is (0, 0, 1)."""
        raise NotImplementedError


class Aimed:
    """Moves pixels as `Geometric` does, by where the masks have something; carried out before all other geometry."""

    for_labels = False

    def matrices(self, masks: Tensor, generator: torch.Generator) -> Tensor:
        """Masks, uint8 [B, H, W] -> maps from output to input coordinates, float32 [B, 3, 3], on the CPU."""
        raise NotImplementedError


class Color:
    """Maps each pixel's color by one affine map per image: contrast, hue."""

    def matrices(self, mean: Tensor, generator: torch.Generator) -> Tensor:
        """Maps of colors in [0, 1], float32 [B, C, C + 1], on the device of ``mean``.

        Args:
            mean: the mean color of each image, float32 [B, C].
            generator: on the CPU.
        """
        raise NotImplementedError


class Pixelwise:
    """Changes the images in any other way: noise, blur, a covered square.

    ``for_masks``: whether targets that are masks may go with it, unchanged; ``makes_views``: whether it may make the views
    that a loss compares with the image.
    """

    for_masks = True
    makes_views = False

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """float32 [B, C, H, W] in [0, 1] -> the same; the result may leave [0, 1] (the pipeline clamps)."""
        raise NotImplementedError


class Mixing:
    """Blends images of a batch with one another, and their targets with them.

    ``for_masks``, ``for_labels``: whether the targets may be masks, and whether they may be labels.
    """

    for_masks = True
    for_labels = True

    def __call__(
        self, images: Tensor, targets: Tensor, generator: torch.Generator, dense: bool
    ) -> tuple[Tensor, Tensor]:
        """Mix a batch, changing neither argument in place.

        Args:
            images: float32 [B, C, H, W] in [0, 1].
            targets: the share of each class, float32 [B, K]; or, if ``dense``, masks, uint8 [B, H, W].
            generator: on the CPU.
            dense: whether targets are masks.

        Returns:
            Images and targets of the same shapes and dtypes.
        """
        raise NotImplementedError


class Policy:
    """Draws other operations for each image of a batch."""

    def draw(self, batch: int, generator: torch.Generator) -> list[Operation]:
        """Operations whose draws are made already, for this batch alone. Its geometry is multiplied with all other
        geometry, and its color with all other color, so a policy costs no resampling of its own."""
        raise NotImplementedError


Operation = Geometric | Aimed | Color | Pixelwise | Mixing
Augmentation = Operation | Policy


@lru_cache(maxsize=256)
def constant(values: tuple[Any, ...], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """``torch.tensor`` of numbers, made once per device. Not to be changed in place."""
    with torch.inference_mode(False):  # else what is made while predicting could not take part in training later
        return torch.tensor(values, dtype=dtype, device=device)


def in_order(span: tuple[float, float]) -> tuple[float, float]:
    """Refuse a range whose first end lies above its second; a check for options."""
    if span[0] > span[1]:
        raise ValueError(f"the first of a range must not be above the second: {span[0]:g} to {span[1]:g}")
    return span


def uniform(batch: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """One draw an image from [low, high), float32 [B], on the CPU: the stream is the same on every device."""
    return torch.rand(batch, generator=generator) * (high - low) + low


def chosen(batch: int, p: float, generator: torch.Generator) -> Tensor:
    """Which images an operation of probability ``p`` falls on, bool [B]."""
    return torch.rand(batch, generator=generator) < p


def of_classes(masks: Tensor, classes: tuple[int, ...]) -> Tensor:
    """Which pixels of masks, uint8 [B, H, W], are of one of the classes: bool [B, H, W]."""
    return torch.isin(masks, constant(classes, masks.device, masks.dtype))


def elsewhere(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """A generator on the images' device, for draws that are as large as the images."""
    seed = int(torch.randint(2**31, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)


def change_some(
    images: Tensor, falls: Tensor, change: Callable[..., Tensor], *per_image: Tensor, out: Tensor | None = None
) -> Tensor:
    """Change the images that ``falls`` marks and leave the others, so that work is done for those alone.

    Args:
        images: [B, C, H, W].
        falls: bool [B], on the CPU.
        change: called with the chosen images and their rows of ``per_image``.
        per_image: [B, ...], on the CPU.
        out: where the result is written; a copy of ``images`` unless given.
    """
    out = images.clone() if out is None else out
    rows = falls.nonzero().squeeze(1)
    if len(rows):
        here = rows.to(images.device)
        changed = change(images.index_select(0, here), *(values[rows].to(images.device) for values in per_image))
        out.index_copy_(0, here, changed)
    return out


def identity(batch: int) -> Tensor:
    """float32 [B, 3, 3]."""
    return torch.eye(3).repeat(batch, 1, 1)
