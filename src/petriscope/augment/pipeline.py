"""From a uint8 batch to what the network sees: one resampling, one map of color, the rest in order, normalized."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from petriscope.augment import AUGMENTATIONS
from petriscope.augment.base import Color, Geometric, Pixelwise
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
            # Channels stay last in memory, so the permuted view is already channels_last.
            return torch.addcmul(bias, images.float(), scale).permute(0, 3, 1, 2)
        return torch.addcmul(bias[:, None, None], images, scale[:, None, None])


class Pipeline:
    """Augmentations in the order of a recipe. Geometry is carried out first, then color, then the rest as listed.

    Args:
        operations: `Geometric`, `Color` and `Pixelwise` ones; none is fine.
    """

    def __init__(self, operations: Sequence[Geometric | Color | Pixelwise] = ()) -> None:
        self.geometric = [op for op in operations if isinstance(op, Geometric)]
        self.color = [op for op in operations if isinstance(op, Color)]
        self.pixelwise = [op for op in operations if isinstance(op, Pixelwise)]

    @classmethod
    def from_recipe(cls, parts: Sequence[Part]) -> Pipeline:
        return cls([AUGMENTATIONS.build(part) for part in parts])

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment a batch.

        Args:
            images: uint8 [B, H, W, C].
            generator: on the CPU; its state decides every draw.

        Returns:
            uint8 [B, H, W, C] where every operation was exact; else float32 [B, C, H, W] in [0, 1].
        """
        inexact = False
        if self.geometric:
            matrices = self._matrices(images, generator)
            inexact = not all(op.exact for op in self.geometric)
            if not inexact:
                images = gather(images, matrices)
        if not (inexact or self.color or self.pixelwise):
            return images
        pixels = (images.float() / 255).permute(0, 3, 1, 2)
        if inexact:
            pixels = resample(pixels, matrices)
        if self.color:
            pixels = self._color(pixels, generator)
        for operation in self.pixelwise:
            pixels = operation(pixels, generator)
        return pixels.clamp(0, 1)

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
