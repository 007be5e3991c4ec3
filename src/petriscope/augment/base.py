"""The kinds of augmentations, and the random draws they share."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from petriscope.core.channels import Groups
from petriscope.core.device import upload

Probability = Annotated[float, Field(ge=0, le=1)]
Magnitude = Annotated[float, Field(ge=0)]
Classes = Annotated[tuple[Annotated[int, Field(ge=0, lt=255)], ...], Field(min_length=1)]


class Change:
    """What every augmentation has.

    ``colors``: ``only`` if it changes red, green and blue in relation to one another; ``also`` if it draws such operations among
    others. ``groups``: see `petriscope.core.channels.groups_of`; the pipeline sets it.
    """

    colors: Literal["", "only", "also"] = ""
    groups: Groups = ()


class Geometric(Change):
    """Moves pixels: one affine map per image, in pixels from the center of the image, x before y.

    ``exact``: the map takes pixel centers to pixel centers, so nothing is interpolated.
    """

    exact = False

    def matrices(self, batch: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Maps from output to input coordinates, float32 [B, 3, 3]; the last row is (0, 0, 1)."""
        raise NotImplementedError


class Aimed(Change):
    """Moves pixels as `Geometric` does, depending on the masks. Applied before all other geometry."""

    for_labels = False

    def matrices(self, masks: Tensor, generator: torch.Generator) -> Tensor:
        """Masks, uint8 [B, H, W] -> maps from output to input coordinates, float32 [B, 3, 3], on the masks' device."""
        raise NotImplementedError


class Color(Change):
    """Maps each pixel's color by one affine map per image: contrast, hue."""

    def matrices(self, mean: Tensor, generator: torch.Generator) -> Tensor:
        """Maps of colors in [0, 1], float32 [B, C, C + 1], on the device of ``mean``.

        Args:
            mean: the mean color of each image, float32 [B, C].
            generator: on the CPU.
        """
        raise NotImplementedError


class Pixelwise(Change):
    """Changes the images in any other way: noise, blur, a covered square.

    ``for_masks``: whether it may be used with masks, which it leaves unchanged.
    """

    for_masks = True

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """float32 [B, C, H, W] in [0, 1] -> the same shape and dtype. Results may leave [0, 1]; the pipeline clamps them."""
        raise NotImplementedError


class Mixing(Change):
    """Mixes the images of a batch with one another, and their targets too.

    ``for_masks``, ``for_labels``: whether targets may be masks, and whether they may be labels.
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


class Policy(Change):
    """Draws other operations for each image of a batch."""

    def draw(self, batch: int, generator: torch.Generator) -> list[Operation]:
        """Operations for one batch, with all random numbers drawn. Their geometry is multiplied with all other geometry,
        and their color with all other color, so a policy needs no resampling of its own."""
        raise NotImplementedError


Operation = Geometric | Aimed | Color | Pixelwise | Mixing
Augmentation = Operation | Policy


@lru_cache(maxsize=256)
def constant(values: tuple[Any, ...], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """``torch.tensor`` of numbers, made once per device. Not to be changed in place."""
    with torch.inference_mode(False):  # else what is made while predicting could not take part in training later
        return torch.tensor(values, dtype=dtype, device=device)


def in_order(span: tuple[float, float]) -> tuple[float, float]:
    """Refuse a range whose first number is greater than its second; a validator of options."""
    if span[0] > span[1]:
        raise ValueError(f"the first of a range must not be above the second: {span[0]:g} to {span[1]:g}")
    return span


def uniform(batch: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """One draw per image from [low, high), float32 [B], on the CPU, so that draws are the same on every device."""
    return torch.rand(batch, generator=generator) * (high - low) + low


def chosen(batch: int, p: float, generator: torch.Generator) -> Tensor:
    """Which images an operation of probability ``p`` is applied to, bool [B], on the CPU."""
    return torch.rand(batch, generator=generator) < p


def of_classes(masks: Tensor, classes: tuple[int, ...]) -> Tensor:
    """Which pixels of masks, uint8 [B, H, W], belong to one of the classes: bool [B, H, W]."""
    return torch.isin(masks, constant(classes, masks.device, masks.dtype))


def elsewhere(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """A generator on the images' device, for draws that are as large as the images."""
    seed = int(torch.randint(2**31, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)


def change_some(
    images: Tensor, falls: Tensor, change: Callable[..., Tensor], *per_image: Tensor, out: Tensor | None = None
) -> Tensor:
    """Change only the images that ``falls`` marks, and do no work for the others.

    Args:
        images: [B, C, H, W].
        falls: bool [B], on the CPU.
        change: called with the chosen images and their rows of ``per_image``.
        per_image: [B, ...], on the CPU.
        out: tensor to write the result to; None: a copy of ``images``.
    """
    out = images.clone() if out is None else out
    rows = falls.nonzero().squeeze(1)
    if len(rows):
        here = upload(rows, images.device)
        changed = change(images.index_select(0, here), *(upload(values[rows], images.device) for values in per_image))
        out.index_copy_(0, here, changed)
    return out


def by_group(images: Tensor, groups: Groups, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Change images, [B, C, H, W], group by group; all channels at once if there are no groups."""
    if not groups:
        return change(images)
    planes = list(images.unbind(1))
    for group in groups:
        changed = change(torch.stack([images[:, place] for place in group], 1))
        for place, plane in zip(group, changed.unbind(1), strict=True):
            planes[place] = plane
    return torch.stack(planes, 1)


def colors_among(groups: Groups) -> Groups:
    """The group of red, green and blue, if there is one."""
    return tuple(group for group in groups if len(group) == 3)


def identity(batch: int, device: torch.device | None = None) -> Tensor:
    """float32 [B, 3, 3]; on the CPU unless a device is given."""
    return torch.eye(3, device=device).repeat(batch, 1, 1)
