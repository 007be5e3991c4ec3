"""How images of one microscope differ from those of another: background, stain, size of the objects, sharpness.

Light falls off exponentially with the amount of a dye (the Beer-Lambert law), so stain is measured as optical density: the
negative logarithm of the color in units of the background's. The background of bright-field images is what is brightest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from petriscope.data.background import BACKGROUND, cell_side, quantile_rank

LIGHTER = 0.99  # share of an image that is brighter than what is taken for its darkest parts
DARKEST = 0.98  # quantile of the optical density that is taken for the most stained parts
LEAST = 1 / 255  # of light: darker pixels have the optical density of this one
FAINT = 0.05  # optical density below which an image has no object


@dataclass(frozen=True, eq=False)
class Appearance:
    """Measures of B images, float32.

    Args:
        background: color of the background per channel, 0 to 255, [B, C].
        stain: mean optical density of the object, natural logarithm, [B]; NaN without an object.
        size: diameter of a disc with the area of the object, as a share of the shorter side of the image, [B]; NaN without
            an object.
        sharpness: root mean square difference between neighboring pixels in units of that between pixels four apart, [B]:
            1/4 for smooth slopes, 1/2 for sharp edges, 1 for noise; NaN for an image of one color.
    """

    background: Tensor
    stain: Tensor
    size: Tensor
    sharpness: Tensor

    def joined(self) -> Tensor:
        """All of them, in this order, [B, C + 3]."""
        return torch.cat([self.background, torch.stack([self.stain, self.size, self.sharpness], 1)], 1)


def measure(images: Tensor) -> Appearance:
    """Measure images, uint8 or uint16 [B, H, W, C] on any device."""
    x = images.permute(0, 3, 1, 2).float() / (255 if images.dtype == torch.uint8 else 65535)
    light = background(x)
    density = optical_density(x, light).mean(1)
    most = _quantile(_cells(density[:, None]), DARKEST)[:, 0]
    inside = density > most[:, None, None] / 2
    area, found = inside.flatten(1).sum(1).float(), most > FAINT
    nothing = torch.full_like(most, torch.nan)
    stain = torch.where(found, (density * inside).flatten(1).sum(1) / area.clamp_min(1), nothing)
    size = torch.where(found, (4 * area / torch.pi).sqrt() / min(x.shape[2:]), nothing)
    gray = x.mean(1)
    near, far = (_steps(gray, apart) for apart in (1, 4))
    return Appearance(light * 255, stain, size, torch.where(far > 0, near / far.clamp_min(1e-12), nothing))


def background(x: Tensor) -> Tensor:
    """The color of the background, float32 [B, C], of images, float32 [B, C, H, W] in [0, 1]."""
    return _quantile(_cells(x), BACKGROUND)


def darkest(x: Tensor) -> Tensor:
    """The color of the darkest parts, channel by channel, float32 [B, C], of images, float32 [B, C, H, W] in [0, 1]."""
    return -_quantile(_cells(-x), LIGHTER)


def optical_density(x: Tensor, light: Tensor) -> Tensor:
    """Optical densities, float32 [B, C, H, W], at least 0.

    Args:
        x: float32 [B, C, H, W] in [0, 1].
        light: color of the background, float32 [B, C].
    """
    return (light.clamp_min(LEAST).log()[:, :, None, None] - x.clamp_min(LEAST).log()).clamp_min(0)


def _cells(x: Tensor) -> Tensor:
    """Means over cells, about `petriscope.data.background.SIDE` per side: [B, C, H, W] -> [B, C, h, w]."""
    step = cell_side(*x.shape[2:])
    return F.avg_pool2d(x, step) if step > 1 else x


def _quantile(x: Tensor, q: float) -> Tensor:
    """[B, C, H, W] -> [B, C]."""
    flat = x.flatten(2)
    rank = quantile_rank(q, flat.shape[2])
    return flat.topk(flat.shape[2] - rank + 1, dim=2).values[:, :, -1]


def _steps(gray: Tensor, apart: int) -> Tensor:
    """Root mean square difference of pixels that far apart: [B, H, W] -> [B]; 0 for images with fewer pixels."""
    parts = [
        (gray.narrow(axis, apart, gray.shape[axis] - apart) - gray.narrow(axis, 0, gray.shape[axis] - apart)).square()
        for axis in (1, 2)
        if gray.shape[axis] > apart
    ]
    if not parts:
        return gray.new_zeros(len(gray))
    return torch.cat([part.flatten(1) for part in parts], 1).mean(1).sqrt()
