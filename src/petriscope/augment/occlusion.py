"""Cover part of an image: squares, rectangles, patches, a grid, or everything outside a disc."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from petriscope.augment.base import Pixelwise, Probability, change_some, chosen, elsewhere, in_order, uniform
from petriscope.core.device import upload
from petriscope.data.appearance import background

Fill = Literal["mean", "noise", "zero", "background"]
Share = Annotated[float, Field(ge=0, le=1)]


Shares = Annotated[tuple[Share, Share], AfterValidator(in_order)]
Lengths = Annotated[
    tuple[Annotated[float, Field(gt=0, le=2)], Annotated[float, Field(gt=0, le=2)]], AfterValidator(in_order)
]
Aspects = Annotated[tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]], AfterValidator(in_order)]


class Cutout(Pixelwise):
    """Cover a square whose side is ``fraction`` of the shorter side. DeVries and Taylor, 2017, arXiv:1708.04552. The center
    of the square is uniform over the image, so it may lie partly outside.

    Args:
        fill: the image's mean color, noise (uniform and independent), zero (black), or the color of its background, which is
            what is brightest.
    """

    def __init__(self, *, fraction: Share = 0.25, fill: Fill = "mean", p: Probability = 0.5) -> None:
        self.fraction, self.fill, self.p = fraction, fill, p

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        batch, _, height, width = images.shape
        side = round(self.fraction * min(height, width)) * chosen(batch, self.p, generator)
        top = torch.randint(0, height, (batch,), generator=generator) - side // 2
        left = torch.randint(0, width, (batch,), generator=generator) - side // 2
        covered = _stretch(top, side, height)[:, :, None] * _stretch(left, side, width)[:, None, :]
        return cover(images, covered, self.fill, generator)


class RandomErasing(Pixelwise):
    """Cover a rectangle of random area and aspect ratio that lies inside the image. Zhong et al., 2020,
    arXiv:1708.04896. Aspect ratios with which the area would not fit are not drawn.

    Args:
        area: least and greatest area, as a share of the image.
        aspect: least and greatest ratio of height to width; its logarithm is uniform.
        fill: as in cutout.
    """

    def __init__(
        self, *, area: Shares = (0.02, 0.4), aspect: Aspects = (0.3, 3.3), fill: Fill = "noise", p: Probability = 0.5
    ) -> None:
        self.area, self.aspect, self.fill, self.p = area, aspect, fill, p

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        batch, _, height, width = images.shape
        pixels = uniform(batch, *self.area, generator) * chosen(batch, self.p, generator) * (height * width)
        fits = (pixels / width**2).clamp_min(1e-6), height**2 / pixels.clamp_min(1e-6)
        low, high = (torch.maximum(torch.minimum(torch.tensor(bound), fits[1]), fits[0]).log() for bound in self.aspect)
        aspect = torch.exp(low + (high - low) * torch.rand(batch, generator=generator))
        rows = torch.round((pixels * aspect).sqrt()).long()
        columns = torch.round((pixels / aspect).sqrt()).long()
        covered = _inside(rows, height, generator)[:, :, None] * _inside(columns, width, generator)[:, None, :]
        return cover(images, covered, self.fill, generator)


class CoarseDropout(Pixelwise):
    """Cover several rectangles that lie inside the image. As in Albumentations (Buslaev et al., 2020, arXiv:1809.06839).

    Args:
        holes: largest number of rectangles; the number is drawn from [1, holes].
        fraction: least and greatest side of a rectangle, as a fraction of the image's height or width.
        fill: as in cutout.
    """

    def __init__(
        self,
        *,
        holes: Annotated[int, Field(ge=0, le=64)] = 4,
        fraction: Shares = (0.1, 0.2),
        fill: Fill = "mean",
        p: Probability = 0.5,
    ) -> None:
        self.holes, self.fraction, self.fill, self.p = holes, fraction, fill, p

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        if self.holes == 0:
            return images
        batch, _, height, width = images.shape
        number = torch.randint(1, self.holes + 1, (batch,), generator=generator)
        there = torch.arange(self.holes) < (number * chosen(batch, self.p, generator))[:, None]

        def spans(length: int) -> Tensor:
            side = uniform(batch * self.holes, *self.fraction, generator).mul_(length).round_().long()
            return _inside(side * there.flatten(), length, generator).view(batch, self.holes, length)

        rows, columns = spans(height), spans(width)
        return cover(images, (rows.transpose(1, 2) @ columns).clamp_max_(1), self.fill, generator)


class HidePatches(Pixelwise):
    """Divide the image into square patches, and cover each with the same probability. Singh and Lee, 2017, arXiv:1704.04232.

    Args:
        patches: least and greatest number of patches along the shorter side; whole numbers are drawn.
        share: least and greatest probability that a patch is covered.
        fill: as in cutout.
    """

    def __init__(
        self,
        *,
        patches: Annotated[
            tuple[Annotated[int, Field(ge=1, le=64)], Annotated[int, Field(ge=1, le=64)]], AfterValidator(in_order)
        ] = (4, 12),
        share: Shares = (0.1, 0.5),
        fill: Fill = "mean",
        p: Probability = 0.5,
    ) -> None:
        self.patches, self.share, self.fill, self.p = patches, share, fill, p

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        batch, _, height, width = images.shape
        number = torch.randint(self.patches[0], self.patches[1] + 1, (batch,), generator=generator)
        share = uniform(batch, *self.share, generator) * chosen(batch, self.p, generator)

        def place(length: int) -> Tensor:
            """The patch that each pixel along an axis is in, int64 [B, length]."""
            return torch.arange(length) * number[:, None] // min(height, width)

        rows, columns = place(height), place(width)
        lots = torch.rand(batch, int(rows.max()) + 1, int(columns.max()) + 1, generator=generator)
        hidden = (lots < share[:, None, None]).float()
        hidden = hidden.gather(1, rows[:, :, None].expand(-1, -1, hidden.shape[2]))
        return cover(images, hidden.gather(2, columns[:, None, :].expand(-1, height, -1)), self.fill, generator)


class GridMask(Pixelwise):
    """Cover a regular grid of squares. Chen et al., 2020, arXiv:2001.04086.

    Args:
        period: least and greatest distance between the centers of squares, in units of the shorter side.
        ratio: share of the period that stays visible between two squares.
        degrees: the grid is rotated by an angle from [-degrees, degrees].
        fill: as in cutout.
    """

    def __init__(
        self,
        *,
        period: Lengths = (0.4, 1.0),
        ratio: Share = 0.6,
        degrees: Annotated[float, Field(ge=0, le=180)] = 0.0,
        fill: Fill = "mean",
        p: Probability = 0.5,
    ) -> None:
        self.period, self.ratio, self.degrees, self.fill, self.p = period, ratio, degrees, fill, p

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        batch, _, height, width = images.shape
        # At least two pixels, so that there is room for a square and a gap.
        period = (uniform(batch, *self.period, generator) * min(height, width)).round_().clamp_min_(2)
        square = torch.round(period * (1 - self.ratio)) * chosen(batch, self.p, generator)
        angle = torch.deg2rad(uniform(batch, -self.degrees, self.degrees, generator))[:, None, None]
        # 0.5 keeps pixel centers off the borders of the squares.
        offset = ((torch.rand(2, batch, generator=generator) * period).floor() + 0.5)[:, :, None, None]
        ys = torch.arange(height).float().sub_(height // 2)[:, None]
        xs = torch.arange(width).float().sub_(width // 2)[None, :]
        if self.degrees:
            ys, xs = angle.cos() * ys + angle.sin() * xs, angle.cos() * xs - angle.sin() * ys
        period, square = period[:, None, None], square[:, None, None]
        # In units of the period. Without rotation y is a column and x a row until here.
        y, x = (ys + offset[0]) / period, (xs + offset[1]) / period
        covered = (y - y.floor() < square / period).float() * (x - x.floor() < square / period).float()
        return cover(images, covered, self.fill, generator)


class DiscMask(Pixelwise):
    """Cover everything outside a disc around the center, where the cell is: neighboring cells and background.

    Args:
        radius: least and greatest, in units of the shorter side; 0.5 touches the nearer borders.
        jitter: largest distance of the disc's center from the image's along each axis, in units of the shorter side.
        fill: as in cutout.
    """

    def __init__(
        self, *, radius: Lengths = (0.35, 0.5), jitter: Share = 0.05, fill: Fill = "zero", p: Probability = 0.5
    ) -> None:
        self.radius, self.jitter, self.fill, self.p = radius, jitter, fill, p

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        batch, _, height, width = images.shape
        side = min(height, width)
        radius = uniform(batch, *self.radius, generator) * side
        radius = torch.where(chosen(batch, self.p, generator), radius, math.inf)
        center_y, center_x = uniform(2 * batch, -self.jitter, self.jitter, generator).mul_(side).view(2, batch, 1)
        down = (torch.arange(height) - (height - 1) / 2 - center_y).square()
        across = (torch.arange(width) - (width - 1) / 2 - center_x).square()
        covered = down[:, :, None] + across[:, None, :] > radius.square()[:, None, None]
        return cover(images, covered.float(), self.fill, generator)


def cover(images: Tensor, covered: Tensor, fill: Fill, generator: torch.Generator) -> Tensor:
    """Fill the covered pixels.

    Args:
        images: float32 [B, C, H, W] in [0, 1].
        covered: 1 where covered, else 0; float32 [B, H, W].
        fill: the image's mean color, noise (uniform and independent), zero, or the color of its background.
    """
    # The lerp of 0 and 1 is exact, and ten times as fast as torch.where on a broadcast condition.
    there = upload(covered, images.device)[:, None]
    if fill == "zero":
        return images * (1 - there)
    if fill == "mean":
        return torch.lerp(images, images.mean((2, 3), keepdim=True), there)
    if fill == "background":
        return torch.lerp(images, background(images)[:, :, None, None], there)
    falls = covered.flatten(1).any(1)
    noise = elsewhere(images.device, generator)
    there = there.index_select(0, upload(falls.nonzero().squeeze(1), images.device))

    def covered_with_noise(some: Tensor) -> Tensor:
        return torch.lerp(some, torch.rand(some.shape, generator=noise, device=some.device), there)

    return change_some(images, falls, covered_with_noise)


def _stretch(start: Tensor, count: Tensor, length: int) -> Tensor:
    """Which of ``length`` pixels lie in [start, start + count): 0 or 1, float32 [B, length]."""
    at = torch.arange(length)
    return ((at >= start[:, None]) & (at < (start + count)[:, None])).float()


def _inside(count: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """As `_stretch`, at a uniformly drawn place that lies inside."""
    count = count.clamp_max(length)
    start = (torch.rand(len(count), generator=generator) * (length - count + 1)).floor()
    return _stretch(start, count, length)
