"""Corruptions of known strength, for the stress test and as an augmentation.

`CORRUPTIONS` holds them by name. Each has severities 1 to 5, and 0, at which an image does not change; training also draws
severities in between. Lengths are in units of the image's shorter side, so that a severity means the same at 28 and at
224 pixels; only the blocks of JPEG always have 8 pixels. Eleven of them are those that MedMNIST-C names for blood cells (Di
Salvo, Doerrich and Ledig, 2024, arXiv:2406.17536); the levels and the implementations are Petriscope's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from petriscope.augment.base import by_group, colors_among, constant
from petriscope.augment.corruptions import blur, cover, digital, light, place
from petriscope.augment.corruptions.draws import Draws, image_keys
from petriscope.augment.geometry import resample
from petriscope.core.channels import FULL, Groups, Names, groups_of
from petriscope.core.device import upload
from petriscope.core.errors import RequestError, near
from petriscope.core.masks import IGNORE

SEVERITIES = (1, 2, 3, 4, 5)
Kind = Literal["storage", "blur", "light", "color", "cover", "place"]


@dataclass(frozen=True)
class Corruption:
    """One corruption.

    Args:
        name: in recipes and tables.
        kind: the group it belongs to.
        carry_out: (images float32 [B, C, H, W] in [0, 1], level float32 [B], draws) -> images, which may leave [0, 1].
        unit: of a level.
        none: the level without any effect.
        levels: of severities 1 to 5.
        medmnist_c: whether MedMNIST-C names it for blood cells.
        gray: whether it changes gray images.
        by_color: whether it does something else to gray images than to those with red, green and blue.
        moves: (level float32 [B], shape [..., H, W], draws) -> the affine map of each image, float32 [B, 3, 3], by which
            its mask follows; None for a corruption that moves no pixels.
    """

    name: str
    kind: Kind
    carry_out: Callable[[Tensor, Tensor, Draws], Tensor]
    unit: str
    none: float
    levels: tuple[float, float, float, float, float]
    medmnist_c: bool = False
    gray: bool = True
    by_color: bool = False
    moves: Callable[[Tensor, torch.Size, Draws], Tensor] | None = None

    def level(self, severity: Tensor) -> Tensor:
        """float [B] in [0, 5] -> levels, linear between the five; float32 [B]."""
        levels = constant((self.none, *self.levels), severity.device, torch.float32)
        below = severity.floor().clamp(0, 4).long()
        return torch.lerp(levels[below], levels[below + 1], (severity - below).float())

    def __call__(self, images: Tensor, severity: Tensor, keys: Tensor, groups: Groups = ()) -> Tensor:
        """Corrupt images.

        Args:
            images: float32 [B, C, H, W] in [0, 1].
            severity: float [B], 0 to 5, on the CPU; at 0 an image is left as it is.
            keys: int64 [B], which decide each image's draws; see `image_keys`.
            groups: of channels, see `petriscope.core.channels.groups_of`; all of an image have the same draws.

        Returns:
            float32 [B, C, H, W] in [0, 1], on the images' device.
        """
        level = upload(self.level(severity), images.device)
        apart = groups if self.by_color else ()
        if groups and not self.gray:
            apart = colors_among(groups)
            if not apart:
                return images
        changed = by_group(images, apart, lambda part: self.carry_out(part, level, Draws(keys))).clamp(0, 1)
        still = severity <= 0
        return (
            torch.where(upload(still, images.device)[:, None, None, None], images, changed) if still.any() else changed
        )

    def follow(self, masks: Tensor, severity: Tensor, keys: Tensor) -> Tensor:
        """Move masks as `__call__` moves their images; uint8 [B, H, W], `IGNORE` where something comes in from
        outside."""
        if self.moves is None:
            return masks
        matrices = self.moves(upload(self.level(severity), masks.device), masks.shape, Draws(keys))
        moved = resample(masks[:, None].float(), matrices, "nearest", IGNORE)[:, 0].to(torch.uint8)
        return torch.where(upload(severity <= 0, masks.device)[:, None, None], masks, moved)


CORRUPTIONS: dict[str, Corruption] = {
    corruption.name: corruption
    for corruption in (
        Corruption(
            "pixelate",
            "storage",
            digital.pixelate,
            "cell, sides",
            0,
            (0.04, 0.055, 0.07, 0.085, 0.105),
            medmnist_c=True,
        ),
        Corruption("jpeg", "storage", digital.jpeg, "quality", 95, (50, 30, 20, 12, 7), medmnist_c=True, by_color=True),
        Corruption("gaussian-noise", "storage", digital.gaussian_noise, "std", 0, (0.03, 0.06, 0.09, 0.13, 0.18)),
        Corruption(
            "defocus-blur",
            "blur",
            blur.defocus_blur,
            "radius, sides",
            0,
            (0.02, 0.03, 0.04, 0.052, 0.066),
            medmnist_c=True,
        ),
        Corruption(
            "motion-blur", "blur", blur.motion_blur, "length, sides", 0, (0.07, 0.11, 0.15, 0.2, 0.26), medmnist_c=True
        ),
        Corruption(
            "brightness-up", "light", light.exposure, "factor", 1, (1.12, 1.25, 1.4, 1.58, 1.8), medmnist_c=True
        ),
        Corruption(
            "brightness-down", "light", light.exposure, "factor", 1, (0.85, 0.7, 0.57, 0.45, 0.34), medmnist_c=True
        ),
        Corruption(
            "contrast-up",
            "light",
            light.contrast,
            "factor",
            1,
            (1.2, 1.45, 1.75, 2.1, 2.6),
            medmnist_c=True,
            by_color=True,
        ),
        Corruption(
            "contrast-down",
            "light",
            light.contrast,
            "factor",
            1,
            (0.8, 0.63, 0.5, 0.38, 0.27),
            medmnist_c=True,
            by_color=True,
        ),
        Corruption(
            "saturation",
            "color",
            light.saturation,
            "factor",
            1,
            (1.3, 1.6, 2.0, 2.5, 3.2),
            medmnist_c=True,
            gray=False,
            by_color=True,
        ),
        Corruption(
            "color-cast",
            "color",
            light.color_cast,
            "amount",
            0,
            (0.05, 0.09, 0.13, 0.18, 0.25),
            gray=False,
            by_color=True,
        ),
        Corruption(
            "stain-deposit",
            "cover",
            cover.stain_deposit,
            "share",
            0,
            (0.042, 0.083, 0.14, 0.21, 0.29),
            medmnist_c=True,
            by_color=True,
        ),
        Corruption(
            "bubble",
            "cover",
            cover.bubble,
            "radius, sides",
            0,
            (0.12, 0.17, 0.22, 0.28, 0.35),
            medmnist_c=True,
            by_color=True,
        ),
        Corruption("occlusion", "cover", cover.occlusion, "share", 0, (0.03, 0.06, 0.1, 0.15, 0.2)),
        Corruption("rotation", "place", place.rotation, "degrees", 0, (9, 18, 27, 36, 45), moves=place.turns),
        Corruption(
            "translation",
            "place",
            place.translation,
            "share of a side",
            0,
            (0.04, 0.08, 0.12, 0.16, 0.2),
            moves=place.shifts,
        ),
    )
}


def find_corruption(name: str) -> Corruption:
    """
    Raises:
        RequestError: there is none of this name.
    """
    if name not in CORRUPTIONS:
        raise RequestError(f"unknown corruption {name!r}; {near(name, CORRUPTIONS)}")
    return CORRUPTIONS[name]


def corrupt(images: Tensor, name: str, severity: float, indices: Tensor, seed: int = 0, channels: Names = ()) -> Tensor:
    """Corrupt images of a set. The same seed gives the same bits however the set is divided into batches.

    Args:
        images: uint8 or uint16 [B, H, W, C].
        name: of a corruption, or ``identity``.
        severity: 0 to 5; at 0 the images are returned unchanged.
        indices: of the images in their set, int64 [B].
        seed: of all draws.
        channels: names; empty: gray or RGB.

    Returns:
        the same shape and type.

    Raises:
        RequestError: there is no corruption of this name.
    """
    if name == "identity" or severity <= 0:
        return images
    full = FULL[8 * images.element_size()]
    pixels = images.permute(0, 3, 1, 2).contiguous().float().div_(full)
    severities, keys = _drawn(images, name, severity, indices, seed)
    changed = find_corruption(name)(pixels, severities, keys, groups_of(channels))
    return changed.mul_(full).round_().to(images.dtype).permute(0, 2, 3, 1).contiguous()


def corrupt_masks(masks: Tensor, name: str, severity: float, indices: Tensor, seed: int = 0) -> Tensor:
    """The masks of corrupted images, uint8 [B, H, W]: moved with the images, with `IGNORE` where a pixel comes from outside,
    and unchanged by corruptions that move no pixels. The arguments are those of `corrupt`."""
    if name == "identity" or severity <= 0:
        return masks
    return find_corruption(name).follow(masks, *_drawn(masks, name, severity, indices, seed))


def _drawn(images: Tensor, name: str, severity: float, indices: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The severity of each image, on the CPU, and its key, [B] both."""
    return torch.full((len(images),), float(severity)), image_keys(upload(indices, images.device), name, seed)
