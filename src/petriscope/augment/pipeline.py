"""From a uint8 batch to what the network sees: one resampling, one map of color, the rest in order, normalized."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from petriscope.augment import AUGMENTATIONS
from petriscope.augment.base import Augmentation, Color, Geometric, Mixing, Pixelwise
from petriscope.augment.color import apply_color, compose
from petriscope.augment.geometry import gather, resample
from petriscope.recipe import Part


class Normalize:
    """uint8 [B, H, W, C] or float [B, C, H, W] in [0, 1] -> float32 [B, C, H, W], zero mean and unit variance.

    Args:
        mean, std: a figure a channel, in units of the full range.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = tuple(mean), tuple(std)

    def __call__(self, images: Tensor) -> Tensor:
        full = 255.0 if images.dtype == torch.uint8 else 1.0
        std = torch.tensor(self.std, device=images.device)
        scale = 1 / (std * full)
        bias = -torch.tensor(self.mean, device=images.device) / std
        if images.dtype == torch.uint8:
            # A row of the picture at a time, not a pixel: three channels are too short a run for the vector units.
            batch, height, width, channels = images.shape
            rows = images.reshape(batch, height, width * channels).float()
            rows = rows.mul_(scale.repeat(width)).add_(bias.repeat(width))
            # Channels stay last in memory, so the permuted view is already channels_last.
            return rows.view(images.shape).permute(0, 3, 1, 2)
        return torch.addcmul(bias[:, None, None], images, scale[:, None, None])


class Pipeline:
    """Augmentations in the order of a recipe. Geometry is carried out first, then color, then the rest as listed, and
    what mixes pictures comes last.

    Args:
        operations: `Geometric`, `Color`, `Pixelwise` and `Mixing` ones; none is fine.
        classes: how many there are; mixing labels needs it.
    """

    def __init__(self, operations: Sequence[Augmentation] = (), classes: int = 0) -> None:
        self.geometric = [op for op in operations if isinstance(op, Geometric)]
        self.color = [op for op in operations if isinstance(op, Color)]
        self.pixelwise = [op for op in operations if isinstance(op, Pixelwise)]
        self.mixing = [op for op in operations if isinstance(op, Mixing)]
        self.classes = classes

    @classmethod
    def from_recipe(cls, parts: Sequence[Part], classes: int = 0) -> Pipeline:
        return cls([AUGMENTATIONS.build(part) for part in parts], classes)

    def __call__(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augment a batch, and its targets with it.

        Args:
            images: uint8 [B, H, W, C].
            targets: labels, int64 [B]; or masks, uint8 [B, H, W].
            generator: on the CPU; its state decides every draw.

        Returns:
            images: uint8 [B, H, W, C] where every operation was exact; else float32 [B, C, H, W] in [0, 1].
            targets: masks moved as the pictures are; labels as they were, or, where pictures are mixed, the share of
            each class, float32 [B, K].
        """
        masks = targets if targets.ndim == 3 else None
        exact = all(op.exact for op in self.geometric)
        if self.geometric:
            matrices = self._matrices(images, generator)
            if exact:
                images = gather(images, matrices)
                masks = None if masks is None else gather(masks[..., None], matrices)[..., 0]
        if exact and not (self.color or self.pixelwise or self.mixing):
            return images, targets if masks is None else masks
        pixels = to_float(images)
        if not exact:
            pixels = resample(pixels, matrices)
            masks = None if masks is None else resample(masks[:, None].float(), matrices, "nearest")[:, 0].to(masks)
        if self.color:
            pixels = self._color(pixels, generator)
        for operation in self.pixelwise:
            pixels = operation(pixels, generator)
        if self.color or self.pixelwise:
            pixels = pixels.clamp(0, 1)
        if masks is not None:
            targets = masks
        elif self.mixing:
            targets = F.one_hot(targets, self.classes).float()
        for mix in self.mixing:
            pixels, targets = mix(pixels, targets, generator)
        return pixels, targets

    def _matrices(self, images: Tensor, generator: torch.Generator) -> Tensor:
        batch, height, width, _ = images.shape
        # A map leads from output to input, so what comes first in the recipe stands leftmost.
        product = self.geometric[0].matrices(batch, (height, width), generator)
        for operation in self.geometric[1:]:
            product = product @ operation.matrices(batch, (height, width), generator)
        return product

    def _color(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        mean = pixels.mean((2, 3)).cpu()
        channels = mean.shape[1]
        total = torch.cat([torch.eye(channels), torch.zeros(channels, 1)], 1).repeat(len(mean), 1, 1)
        for operation in self.color:
            moved = (total[:, :, :channels] @ mean[:, :, None]).squeeze(2) + total[:, :, channels]
            total = compose(total, operation.matrices(moved, generator))
        return apply_color(pixels, total)


def to_float(images: Tensor) -> Tensor:
    """uint8 [B, H, W, C] -> float32 [B, C, H, W] in [0, 1], channels last in memory."""
    return images.float().div_(255).permute(0, 3, 1, 2)
