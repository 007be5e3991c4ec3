"""From a batch of whole numbers to the input of the network: one resampling, one map of color, the other operations,
normalization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    by_group,
    colors_among,
    constant,
    identity,
)
from petriscope.augment.color import apply_color, compose, mapped, unchanged
from petriscope.augment.geometry import gather, is_exact, resample
from petriscope.augment.standardize import Standardize
from petriscope.core.channels import Groups, Names, groups_of, in_words
from petriscope.core.device import upload
from petriscope.core.errors import RequestError
from petriscope.core.masks import IGNORE
from petriscope.core.recipe import Part, Standard


class Normalize:
    """uint8 or uint16 [B, H, W, C] or float [B, C, H, W] in [0, 1] -> float32 [B, C, H, W], zero mean and unit variance.

    Args:
        mean, std: one value per channel, in units of the full range.
        standard: what is standardized before.
        channels: names; empty: gray or RGB.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        standard: Sequence[Standard] = (),
        channels: Names = (),
    ) -> None:
        self.mean, self.std = tuple(mean), tuple(std)
        self.standardize = Standardize(standard, channels)

    def __call__(self, images: Tensor) -> Tensor:
        if self.standardize:
            images = self.standardize(images if images.is_floating_point() else to_float(images))
        full = full_scale(images.dtype)
        std = constant(self.std, images.device)
        scale = 1 / (std * full)
        bias = -constant(self.mean, images.device) / std
        if not images.is_floating_point():
            # Row by row rather than pixel by pixel: three channels are too few values for vector instructions.
            batch, height, width, channels = images.shape
            rows = images.reshape(batch, height, width * channels).float()
            rows = rows.mul_(scale.repeat(width)).add_(bias.repeat(width))
            # Channels stay last in memory, so the permuted view is already channels_last.
            return rows.view(images.shape).permute(0, 3, 1, 2)
        return torch.addcmul(bias[:, None, None], images, scale[:, None, None])


@dataclass(frozen=True)
class Views:
    """Further views of each image, which a loss compares with the image.

    Args:
        count: of views of each image.
        by: names of the augmentations that make them; these do not change the image itself.
    """

    count: int = 0
    by: tuple[str, ...] = ()


NO_VIEWS = Views()


class Pipeline:
    """The augmentations of a recipe. Geometry is applied first, then color, then the other operations in the order of
    the recipe, and mixing last. The operations that a policy draws are sorted in by their kinds.

    Args:
        operations: any augmentations, also none.
        classes: number of classes; needed to mix labels. None: targets have 0 or 1 for each class.
        views: number of views made of each image after all operations.
        viewing: the operations that make them; they do not change the image itself.
        dense: whether targets are masks, which move with their images.
        channels: names; empty: gray or RGB. What changes light and color changes red, green and blue together, and every other
            channel as a gray image of its own.

    Raises:
        RequestError: several operations that aim at a place in a mask; an operation that cannot make views; one that changes
            colors, and no channels are called so.
    """

    def __init__(
        self,
        operations: Sequence[Augmentation] = (),
        classes: int | None = 0,
        views: int = 0,
        viewing: Sequence[Augmentation] = (),
        *,
        dense: bool = False,
        channels: Names = (),
    ) -> None:
        self.groups = groups_of(channels)
        check_colors((*operations, *viewing), channels)
        for op in (*operations, *viewing):
            op.groups = self.groups
        if sum(isinstance(op, Aimed) for op in operations) > 1:
            raise RequestError("an image can be cropped around one place only: list crop-around once under augment")
        for op in viewing:
            if isinstance(op, Aimed | Mixing):
                raise RequestError(
                    f"{type(op).__name__} cannot make the views that loss consistency compares: they show one image each"
                )
        self.operations, self.viewing = tuple(operations), tuple(viewing)
        self.classes, self.views, self.dense = classes, views, dense
        self.exact = not views and all(isinstance(op, Geometric) and op.exact for op in operations)

    @classmethod
    def from_recipe(
        cls,
        parts: Sequence[Part],
        classes: int | None = 0,
        views: Views = NO_VIEWS,
        *,
        dense: bool = False,
        channels: Names = (),
    ) -> Pipeline:
        """
        Raises:
            RequestError: a part is wrong, or one that makes views is not listed once; and as of the class.
        """
        by = views.by if views.count else ()
        for name in by:
            if [part.name for part in parts].count(name) != 1:
                raise RequestError(
                    f"loss consistency compares images with the views that {name} makes: list {name} once under augment"
                )
        built = [(part.name in by, AUGMENTATIONS.build(part)) for part in parts]
        viewing = [operation for makes, operation in built if makes]
        return cls(
            [op for makes, op in built if not makes], classes, views.count, viewing, dense=dense, channels=channels
        )

    @property
    def varies(self) -> bool:
        """Whether an image may come out differently each time."""
        return bool(self.operations or self.viewing)

    def __call__(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augment a batch, and its targets with it.

        Args:
            images: uint8 or uint16 [B, H, W, C].
            targets: labels, int64 [B], or 0 and 1 of each class, uint8 [B, K]; or, if dense, masks, uint8 [B, H, W].
            generator: on the CPU; its state decides every draw.

        Returns:
            images: as they came, [B, H, W, C], where every operation is exact; else float32 [B, C, H, W] in [0, 1].
            targets: masks moved with their images; labels unchanged or, with mixing, the share of each class, float32
            [B, K].

        With ``views``, the first views of all images follow the images, then the second views, and so on: [(1 + views) B,
        ...]. The targets are those of the images.

        Masks are `petriscope.core.masks.IGNORE` where a pixel comes from outside the image.

        Raises:
            RequestError: an operation that does not support the targets, see `check_targets`.
        """
        masks = targets if self.dense else None
        operations = drawn(self.operations, len(images), generator)
        check_targets(operations, self.dense)
        geometric = [op for op in operations if isinstance(op, Geometric)]
        matrices = product(geometric, len(images), (images.shape[1], images.shape[2]), generator)
        for aim in operations:
            if isinstance(aim, Aimed) and masks is not None:
                matrices = aim.matrices(masks, generator) @ upload(matrices, masks.device)
        # Images with exact maps are moved by index, and only the others are resampled. Maps that depend on masks on a GPU
        # are not read, which would wait for it.
        known = matrices.device.type == "cpu"
        exact = is_exact(matrices, (images.shape[1], images.shape[2])) if known else torch.zeros(len(images)).bool()
        moves = torch.where(exact[:, None, None], matrices, torch.eye(3)) if known else torch.eye(3)
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
        pixels = apply_pixels(pixels, operations, generator, self.groups)
        mixing = [op for op in operations if isinstance(op, Mixing)]
        if masks is not None:
            targets = masks
        elif mixing:
            targets = (targets if self.classes is None else F.one_hot(targets, self.classes)).float()
        for mix in mixing:
            pixels, targets = mix(pixels, targets, generator, self.dense)
        if self.views:
            seen = [move_and_change(pixels, self.viewing, generator, self.groups) for _ in range(self.views)]
            pixels = torch.cat([pixels, *seen])
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
                f"{name} blends images, but a mask has one class per pixel: leave it out of augment when targets are masks "
                "(cutmix and rand-augment move masks with the images)"
            )
        if not dense and not getattr(operation, "for_labels", True):
            raise RequestError(f"{name} needs masks, and the targets are labels: leave it out of augment")


def check_colors(operations: Sequence[Augmentation], channels: Names) -> None:
    """Refuse operations that change colors, where no channels are called red, green and blue.

    Raises:
        RequestError: names the operation.
    """
    if not (groups := groups_of(channels)) or colors_among(groups):
        return
    for operation in operations:
        name = type(operation).__name__
        if operation.colors == "only":
            raise RequestError(
                f"{name} changes colors, and the images have {in_words(channels)}, none called red, green and blue: leave it out "
                "of augment, or name the channels with data.channels"
            )
        if operation.colors == "also":
            raise RequestError(
                f"{name} draws operations that change colors, and the images have {in_words(channels)}, none called red, green "
                "and blue: give it left_out: [color]"
            )


def drawn(operations: Sequence[Augmentation], batch: int, generator: torch.Generator) -> list[Operation]:
    """The operations, each policy replaced by those that it draws for this batch."""
    out: list[Operation] = []
    for operation in operations:
        out += operation.draw(batch, generator) if isinstance(operation, Policy) else [operation]
    return out


def product(operations: Sequence[Geometric], batch: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """One map per image that applies all ``operations``, in their order: float32 [B, 3, 3]."""
    total = identity(batch)
    for operation in operations:
        # Maps lead from output to input coordinates, so the operation that is applied first is the leftmost factor.
        total = total @ operation.matrices(batch, size, generator)
    return total


def resample_rows(pixels: Tensor, matrices: Tensor, rows: Tensor) -> Tensor:
    """Resample the images at ``rows``, int64 on the CPU, in place; the others keep their bits."""
    if len(rows) == 0:
        return pixels
    if len(rows) == len(pixels):
        return resample(pixels, matrices)
    here = upload(rows, pixels.device)
    return pixels.index_copy_(0, here, resample(pixels.index_select(0, here), matrices[rows]))


def _resample_masks(masks: Tensor, matrices: Tensor, rows: Tensor) -> Tensor:
    """Masks, uint8 [B, H, W], resampled at ``rows`` by nearest neighbor; `IGNORE` where a pixel comes from outside."""
    if len(rows) == 0:
        return masks
    if len(rows) == len(masks):
        return resample(masks[:, None].float(), matrices, "nearest", IGNORE)[:, 0].to(masks.dtype)
    here = upload(rows, masks.device)
    moved = _resample_masks(masks.index_select(0, here), matrices[rows], torch.arange(len(rows)))
    return masks.index_copy(0, here, moved)


def move_and_change(
    pixels: Tensor, operations: Sequence[Augmentation], generator: torch.Generator, groups: Groups = ()
) -> Tensor:
    """Apply all operations but those that aim or mix, to images that are floats already: float32 [B, C, H, W] in [0, 1] -> a
    tensor of its own."""
    operations = drawn(operations, len(pixels), generator)
    geometric = [op for op in operations if isinstance(op, Geometric)]
    matrices = product(geometric, len(pixels), (pixels.shape[2], pixels.shape[3]), generator)
    moved = (matrices != torch.eye(3)).any(2).any(1).nonzero().squeeze(1)
    return apply_pixels(resample_rows(pixels.clone(), matrices, moved), operations, generator, groups)


def apply_pixels(
    pixels: Tensor, operations: Sequence[Operation], generator: torch.Generator, groups: Groups = ()
) -> Tensor:
    """Apply all operations that move no pixels: color as one map, then the others in order. float32 [B, C, H, W] in
    [0, 1] -> the same."""
    color = [op for op in operations if isinstance(op, Color)]
    pixelwise = [op for op in operations if isinstance(op, Pixelwise)]
    if color:
        pixels = by_group(pixels, groups, lambda part: apply_color(part, _color_maps(part, color, generator)))
    for operation in pixelwise:
        if groups and operation.colors == "only":
            if some := colors_among(groups):
                pixels = by_group(pixels, some, lambda part, change=operation: change(part, generator))  # type: ignore[misc]
            continue
        pixels = operation(pixels, generator)
    return pixels.clamp(0, 1) if color or pixelwise else pixels


def _color_maps(pixels: Tensor, operations: Sequence[Color], generator: torch.Generator) -> Tensor:
    mean = pixels.mean((2, 3))
    total = unchanged(mean)
    for operation in operations:
        total = compose(total, operation.matrices(mapped(mean, total), generator))
    return total


def full_scale(dtype: torch.dtype) -> float:
    """The value that is white: 255 of uint8, 65535 of uint16, and 1 of floats."""
    return {torch.uint8: 255.0, torch.uint16: 65535.0}.get(dtype, 1.0)


def to_float(images: Tensor) -> Tensor:
    """uint8 or uint16 [B, H, W, C] -> float32 [B, C, H, W] in [0, 1], contiguous, because later operations work on planes.
    Float32 holds all 65,536 levels."""
    # Reordered as they are, which is a quarter or a half of the size of floats.
    return images.permute(0, 3, 1, 2).contiguous().float().div_(full_scale(images.dtype))


def standardized(images: Tensor, standardize: Standardize) -> Tensor:
    """Images, uint8 or uint16 [B, H, W, C], as they are when they have been standardized -> the same."""
    return to_whole(standardize(to_float(images)), images.dtype) if standardize else images


def to_whole(images: Tensor, dtype: torch.dtype) -> Tensor:
    """The images that `Pipeline` returns, whole numbers [B, H, W, C] or float32 [B, C, H, W] in [0, 1] -> uint8 or uint16
    [B, H, W, C]."""
    if not images.is_floating_point():
        return images
    return (images.permute(0, 2, 3, 1) * full_scale(dtype)).round().to(dtype)
