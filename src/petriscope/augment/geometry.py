"""Flips, quarter turns, shifts, rotation, scale and shear, all applied in one resampling."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from petriscope.augment.base import Geometric, Magnitude, Probability, chosen, constant, identity, uniform
from petriscope.core.device import rows_of, upload


class Flip(Geometric):
    """Mirror left-right and top-bottom, each with its own probability. Exact."""

    exact = True

    def __init__(self, *, horizontal: Probability = 0.5, vertical: Probability = 0.0) -> None:
        self.horizontal, self.vertical = horizontal, vertical

    def matrices(self, batch: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        out = identity(batch)
        out[:, 0, 0] -= 2.0 * chosen(batch, self.horizontal, generator)
        out[:, 1, 1] -= 2.0 * chosen(batch, self.vertical, generator)
        return out


class QuarterTurn(Geometric):
    """Turn by 0, 90, 180 or 270 degrees, equally likely. Exact. Images that are not square are turned by 0 or 180."""

    exact = True

    def __init__(self, *, p: Probability = 1.0) -> None:
        self.p = p

    def matrices(self, batch: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        turns = torch.randint(0, 4, (batch,), generator=generator) * chosen(batch, self.p, generator)
        if size[0] != size[1]:
            turns = turns // 2 * 2
        cos = torch.tensor([1.0, 0.0, -1.0, 0.0])[turns]
        sin = torch.tensor([0.0, 1.0, 0.0, -1.0])[turns]
        return _rotation(cos, sin)


class Translate(Geometric):
    """Shift by up to ``fraction`` of the side along each axis, by default by whole pixels, which is exact. Pixels from
    beyond the border are mirrored. CIFAR's "pad by 4 and crop" is ``fraction: 0.125`` at 32 pixels."""

    def __init__(
        self, *, fraction: Annotated[float, Field(ge=0, le=1)] = 0.1, whole_pixels: bool = True, p: Probability = 1.0
    ) -> None:
        self.fraction, self.exact, self.p = fraction, whole_pixels, p

    def matrices(self, batch: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        out = identity(batch)
        falls = chosen(batch, self.p, generator)
        for axis, side in enumerate(reversed(size)):
            reach = self.fraction * side
            if self.exact:
                pixels = math.floor(reach + 1e-6)
                shift = torch.randint(-pixels, pixels + 1, (batch,), generator=generator).float()
            else:
                shift = uniform(batch, -reach, reach, generator)
            out[:, axis, 2] = shift * falls
        return out


class Rotate(Geometric):
    """Rotate by an angle from [-degrees, degrees]. Interpolates, which blurs small images."""

    def __init__(self, *, degrees: Annotated[float, Field(ge=0, le=180)] = 10.0, p: Probability = 1.0) -> None:
        self.degrees, self.p = degrees, p

    def matrices(self, batch: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        angle = uniform(batch, -self.degrees, self.degrees, generator) * chosen(batch, self.p, generator)
        angle = torch.deg2rad(angle)
        return _rotation(angle.cos(), angle.sin())


class Scale(Geometric):
    """Zoom by a factor from [1 / (1 + amount), 1 + amount], uniform in its logarithm."""

    def __init__(self, *, amount: Magnitude = 0.1, p: Probability = 1.0) -> None:
        self.amount, self.p = amount, p

    def matrices(self, batch: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        reach = math.log1p(self.amount)
        factor = torch.exp(uniform(batch, -reach, reach, generator) * chosen(batch, self.p, generator))
        out = identity(batch)
        out[:, 0, 0] = out[:, 1, 1] = 1 / factor
        return out


class Shear(Geometric):
    """Shear along x and along y, each by an angle from [-degrees, degrees]."""

    def __init__(self, *, degrees: Annotated[float, Field(ge=0, le=60)] = 10.0, p: Probability = 1.0) -> None:
        self.degrees, self.p = degrees, p

    def matrices(self, batch: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        falls = chosen(batch, self.p, generator)
        along_x, along_y = identity(batch), identity(batch)
        along_x[:, 0, 1] = torch.deg2rad(uniform(batch, -self.degrees, self.degrees, generator)).tan() * falls
        along_y[:, 1, 0] = torch.deg2rad(uniform(batch, -self.degrees, self.degrees, generator)).tan() * falls
        return along_x @ along_y


def _rotation(cos: Tensor, sin: Tensor) -> Tensor:
    out = identity(len(cos))
    out[:, 0, 0], out[:, 0, 1] = cos, -sin
    out[:, 1, 0], out[:, 1, 1] = sin, cos
    return out


def is_exact(matrices: Tensor, size: tuple[int, int]) -> Tensor:
    """Which maps take pixel centers to pixel centers, so that `gather` can apply them: bool [B].

    Args:
        matrices: [B, 3, 3] on the CPU.
        size: height and width.
    """
    whole = matrices.round()
    near = (matrices - whole).abs().amax((1, 2)) < 1e-4
    linear = whole[:, :2, :2].abs()
    mirrored = (linear == torch.eye(2)).all(2).all(1)
    turned = (linear == 1 - torch.eye(2)).all(2).all(1)
    return near & (mirrored | turned if size[0] == size[1] else mirrored)


def gather(images: Tensor, matrices: Tensor, outside: int | None = None) -> Tensor:
    """Move pixels by exact maps. Pixels from beyond the border are mirrored, or set to ``outside``.

    An exact map sends each output row to one input row or one input column, so the source index of pixel (y, x) is the sum
    of a term in y and a term in x: two small tables per image and one indexing of the batch.

    Args:
        images: [B, H, W, C], any dtype.
        matrices: [B, 3, 3] on the CPU, as `Geometric.matrices` gives them; entries of the left 2 x 2 are -1, 0 or 1.

    Returns:
        [B, H, W, C] of the same dtype.
    """
    batch, height, width, channels = images.shape
    m = matrices.numpy()
    turned = abs(m[:, 0, 0]) < 0.5  # rows of the output are columns of the input
    plain = [
        _sources(m[:, 1, 1], m[:, 1, 2], height, height) * width,
        _sources(m[:, 0, 0], m[:, 0, 2], width, width),
    ]
    if turned.any():
        crossed = [
            _sources(m[:, 0, 1], m[:, 0, 2], height, width),
            _sources(m[:, 1, 0], m[:, 1, 2], width, height) * width,
        ]
        plain = [np.where(turned[:, None], c, p) for c, p in zip(crossed, plain, strict=True)]
    by_y, by_x = (upload(torch.from_numpy(table), images.device) for table in plain)
    out_of_frame = None if outside is None else _beyond(matrices, height, width)
    by_y += torch.arange(batch, device=images.device)[:, None] * (height * width)
    index = by_y[:, :, None] + by_x[:, None, :]
    moved = rows_of(images.reshape(-1, channels), index.flatten()).view(batch, height, width, channels)
    if outside is not None and out_of_frame is not None:
        moved.masked_fill_(upload(out_of_frame[..., None], images.device), outside)
    return moved


def _beyond(matrices: Tensor, height: int, width: int) -> Tensor | None:
    """Which output pixels come from outside the image, bool [B, H, W] on the CPU; None if none does."""
    corner_y, corner_x = (height - 1) / 2, (width - 1) / 2
    corners = torch.tensor([[x, y, 1.0] for x in (-corner_x, corner_x) for y in (-corner_y, corner_y)]).T
    reach = (matrices @ corners).abs().amax(2)  # an affine map is farthest out at a corner
    if bool(((reach[:, 0] <= corner_x + 0.5) & (reach[:, 1] <= corner_y + 0.5)).all()):
        return None
    y = (torch.arange(height) - corner_y)[:, None]
    x = torch.arange(width) - corner_x
    m = matrices[:, :2, :, None, None]
    from_x, from_y = (m[:, axis, 0] * x + m[:, axis, 1] * y + m[:, axis, 2] for axis in (0, 1))
    # The image ends half a pixel beyond the centers of its outermost pixels.
    return (from_x.abs() > width / 2 + 1e-3) | (from_y.abs() > height / 2 + 1e-3)


def _sources(step: np.ndarray, offset: np.ndarray, count: int, side: int) -> np.ndarray:
    """The source of each of ``count`` outputs along an input axis of ``side`` pixels, int64 [B, count]. ``step`` and
    ``offset`` [B] count from center to center. Mirrored at the first and last pixel, which are not repeated."""
    along = np.arange(count, dtype=np.float32) - (count - 1) / 2
    index = np.rint(step[:, None] * along + (offset[:, None] + (side - 1) / 2)).astype(np.int64)
    if index.min() >= 0 and index.max() < side:
        return index
    period = max(2 * (side - 1), 1)
    index %= period
    return np.minimum(index, period - index)


def resample(
    images: Tensor, matrices: Tensor, mode: Literal["bilinear", "nearest"] = "bilinear", outside: int | None = None
) -> Tensor:
    """Move pixels by any affine maps. Pixels from beyond the border are mirrored, or set to ``outside``.

    Args:
        images: float32 [B, C, H, W].
        matrices: [B, 3, 3], as `Geometric.matrices` gives them.
    """
    height, width = images.shape[2:]
    m = upload(matrices, images.device)
    # grid_sample counts coordinates in half sides
    half = constant((width / 2, height / 2), images.device)
    linear, offset = m[:, :2, :2] * half[None, None, :] / half[None, :, None], m[:, :2, 2:] / half[None, :, None]
    # The sum of a term in y and a term in x, [B, 2, H, W]; F.affine_grid multiplies matrices, which takes six times as long.
    by_y = linear[:, :, 1:] * _centers(height, images.device) + offset
    by_x = linear[:, :, :1] * _centers(width, images.device)
    places = by_y[:, :, :, None] + by_x[:, :, None, :]
    grid = places.permute(0, 2, 3, 1)
    moved = F.grid_sample(images, grid, mode=mode, padding_mode="reflection", align_corners=False)
    if outside is not None:
        moved.masked_fill_((places.abs().amax(1) > 1)[:, None], outside)
    return moved


def _centers(side: int, device: torch.device) -> Tensor:
    """Where the centers of pixels lie between -1 and 1, the borders of the image."""
    return (2 * torch.arange(side, device=device) + 1) / side - 1
