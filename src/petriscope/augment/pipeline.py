"""From a uint8 batch to what the network sees: one resampling, one map of color, the rest in order, normalized."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from petriscope.augment import AUGMENTATIONS
from petriscope.augment.base import (
    Aimed,
    Augmentation,
    Color,
    Geometric,
    Mixing,
    Operation,
    Pixelwise,
    Policy,
    constant,
    identity,
)
from petriscope.augment.color import apply_color, compose, mapped, unchanged
from petriscope.augment.geometry import gather, is_exact, resample
from petriscope.core.errors import RequestError
from petriscope.core.masks import IGNORE
from petriscope.core.recipe import Part


class Normalize:
    """uint8 [B, H, W, C] or float [B, C, H, W] in [0, 1] -> float32 [B, C, H, W], zero mean and unit variance.

    Args:
        mean, std: one value per channel, in units of the full range.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = tuple(mean), tuple(std)

    def __call__(self, images: Tensor) -> Tensor:
        full = 255.0 if images.dtype == torch.uint8 else 1.0
        std = constant(self.std, images.device)
        scale = 1 / (std * full)
        bias = -constant(self.mean, images.device) / std
        if images.dtype == torch.uint8:
            # A row of the image at a time, not a pixel: three channels are too short a run for the vector units.
            batch, height, width, channels = images.shape
            rows = images.reshape(batch, height, width * channels).float()
            rows = rows.mul_(scale.repeat(width)).add_(bias.repeat(width))
            # Channels stay last in memory, so the permuted view is already channels_last.
            return rows.view(images.shape).permute(0, 3, 1, 2)
        return torch.addcmul(bias[:, None, None], images, scale[:, None, None])


class Pipeline:
    """Augmentations in the order of a recipe. Geometry is carried out first, then color, then the rest as listed, and
    what mixes images comes last. What a policy draws goes where its kind goes.

    Args:
        operations: any augmentations; none is fine.
        classes: how many there are; mixing labels needs it.
        views: how many AugMix makes of each image when all else is done; the image itself is then left without it.
        dense: whether targets are masks, which move with their images.

    Raises:
        RequestError: views without AugMix, or with several; two operations that aim at a place in a mask.
    """

    def __init__(
        self, operations: Sequence[Augmentation] = (), classes: int = 0, views: int = 0, *, dense: bool = False
    ) -> None:
        self.viewing = tuple(op for op in operations if views and isinstance(op, Pixelwise) and op.makes_views)
        if views and len(self.viewing) != 1:
            raise RequestError(
                "loss consistency compares images with what aug-mix makes of them: put aug-mix into augment, once"
            )
        if sum(isinstance(op, Aimed) for op in operations) > 1:
            raise RequestError("an image can be cropped around one place: put crop-around into augment once")
        self.operations = tuple(op for op in operations if op not in self.viewing)
        self.classes, self.views, self.dense = classes, views, dense
        self.exact = not views and all(isinstance(op, Geometric) and op.exact for op in operations)

    @classmethod
    def from_recipe(cls, parts: Sequence[Part], classes: int = 0, views: int = 0, *, dense: bool = False) -> Pipeline:
        return cls([AUGMENTATIONS.build(part) for part in parts], classes, views, dense=dense)

    @property
    def varies(self) -> bool:
        """Whether an image comes out otherwise from one time to the next."""
        return bool(self.operations or self.viewing)

    def __call__(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augment a batch, and its targets with it.

        Args:
            images: uint8 [B, H, W, C].
            targets: labels, int64 [B]; or, if dense, masks, uint8 [B, H, W].
            generator: on the CPU; its state decides every draw.

        Returns:
            images: uint8 [B, H, W, C] where every operation is exact; else float32 [B, C, H, W] in [0, 1].
            targets: masks moved as the images are; labels as they were, or, where images are mixed, the share of
            each class, float32 [B, K].

        With ``views``, the images are followed by their first views, then by their second, and so on: [(1 + views) B, ...];
        targets stay those of the images.

        Masks have `petriscope.core.masks.IGNORE` where something comes in from outside the image.

        Raises:
            RequestError: masks with an operation that blends what lies under them; labels with one that needs masks.
        """
        masks = targets if self.dense else None
        operations = drawn(self.operations, len(images), generator)
        check_targets(operations, self.dense)
        geometric = [op for op in operations if isinstance(op, Geometric)]
        matrices = product(geometric, len(images), (images.shape[1], images.shape[2]), generator)
        for aim in operations:
            if isinstance(aim, Aimed) and masks is not None:
                matrices = aim.matrices(masks, generator) @ matrices
        # An image whose own map is exact is moved by index, whatever the others of the batch drew.
        exact = is_exact(matrices, (images.shape[1], images.shape[2]))
        moves = torch.where(exact[:, None, None], matrices, torch.eye(3))
        if (moves != torch.eye(3)).any():
            images = gather(images, moves)
            masks = None if masks is None else gather(masks[..., None], moves, IGNORE)[..., 0]
        if self.exact:
            return images, targets if masks is None else masks
        pixels = to_float(images)
        rows = (~exact).nonzero().squeeze(1)
        pixels = resample_rows(pixels, matrices, rows)
        if masks is not None:
            masks = _resample_masks(masks, matrices, rows)
        pixels = apply_pixels(pixels, operations, generator)
        mixing = [op for op in operations if isinstance(op, Mixing)]
        if masks is not None:
            targets = masks
        elif mixing:
            targets = F.one_hot(targets, self.classes).float()
        for mix in mixing:
            pixels, targets = mix(pixels, targets, generator, self.dense)
        if self.views:
            pixels = torch.cat([pixels, *(apply_pixels(pixels, self.viewing, generator) for _ in range(self.views))])
        return pixels, targets


def check_targets(operations: Sequence[Augmentation], dense: bool) -> None:
    """Refuse operations that do not support the targets: masks if ``dense``, else labels.

    Raises:
        RequestError: names the operation.
    """
    for operation in operations:
        name = type(operation).__name__
        if dense and not getattr(operation, "for_masks", True):
            raise RequestError(
                f"{name} blends images, and a mask holds one class per pixel: leave it out "
                "of augment where targets are masks (cutmix and rand-augment move masks with the images)"
            )
        if not dense and not getattr(operation, "for_labels", True):
            raise RequestError(f"{name} needs masks, and the targets are labels: leave it out of augment")


def drawn(operations: Sequence[Augmentation], batch: int, generator: torch.Generator) -> list[Operation]:
    """The operations, with those that each policy draws for this batch in its place."""
    out: list[Operation] = []
    for operation in operations:
        out += operation.draw(batch, generator) if isinstance(operation, Policy) else [operation]
    return out


def product(operations: Sequence[Geometric], batch: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """One map an image that does all of ``operations``, the first of them first: float32 [B, 3, 3]."""
    total = identity(batch)
    for operation in operations:
        # A map leads from output to input, so what is done first stands leftmost.
        total = total @ operation.matrices(batch, size, generator)
    return total


def resample_rows(pixels: Tensor, matrices: Tensor, rows: Tensor) -> Tensor:
    """Resample the images at ``rows``, int64 on the CPU, in place; the others keep their bits."""
    if len(rows) == 0:
        return pixels
    if len(rows) == len(pixels):
        return resample(pixels, matrices)
    here = rows.to(pixels.device)
    return pixels.index_copy_(0, here, resample(pixels.index_select(0, here), matrices[rows]))


def _resample_masks(masks: Tensor, matrices: Tensor, rows: Tensor) -> Tensor:
    """uint8 [B, H, W]: the masks at ``rows`` moved to the nearest pixel, `IGNORE` for what comes from outside."""
    if len(rows) == 0:
        return masks
    here = rows.to(masks.device)
    chosen = masks.index_select(0, here)[:, None].float()
    moved = resample(chosen, matrices[rows], "nearest", IGNORE)[:, 0].to(masks.dtype)
    return masks.index_copy(0, here, moved)


def apply_pixels(pixels: Tensor, operations: Sequence[Operation], generator: torch.Generator) -> Tensor:
    """Carry out what moves nothing: the color maps as one, then the rest in order. float32 [B, C, H, W] in [0, 1]."""
    color = [op for op in operations if isinstance(op, Color)]
    pixelwise = [op for op in operations if isinstance(op, Pixelwise)]
    if color:
        pixels = apply_color(pixels, _color_maps(pixels, color, generator))
    for operation in pixelwise:
        pixels = operation(pixels, generator)
    return pixels.clamp(0, 1) if color or pixelwise else pixels


def _color_maps(pixels: Tensor, operations: Sequence[Color], generator: torch.Generator) -> Tensor:
    mean = pixels.mean((2, 3))
    total = unchanged(mean)
    for operation in operations:
        total = compose(total, operation.matrices(mapped(mean, total), generator))
    return total


def to_float(images: Tensor) -> Tensor:
    """uint8 [B, H, W, C] -> float32 [B, C, H, W] in [0, 1], contiguous: what follows works on whole planes."""
    # the bytes are put in order before they are widened to four times their size
    return images.permute(0, 3, 1, 2).contiguous().float().div_(255)


def to_bytes(images: Tensor) -> Tensor:
    """What `Pipeline` gives, uint8 [B, H, W, C] or float32 [B, C, H, W] in [0, 1] -> uint8 [B, H, W, C]."""
    if images.dtype == torch.uint8:
        return images
    return (images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8)
