"""Objects on a slide that hide part of a cell: stain deposits, air bubbles, and others."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from petriscope.augment.base import constant
from petriscope.augment.corruptions.draws import Draws
from petriscope.augment.corruptions.means import steady_mean

DROPS = 7  # of a deposit
MELTING = 0.72  # drops that melt together cover more than their discs would: these have so much of the share
STAIN = (0.42, 0.18, 0.52)  # light that a deposit lets through: a dark violet
GLASS = (0.93, 0.93, 0.95)  # what a bubble shows: the lamp
RIM = 0.3  # light that the rim of a bubble lets through


def stain_deposit(images: Tensor, share: Tensor, draws: Draws) -> Tensor:
    """Precipitated stain: dark violet blots that absorb light and cover about ``share`` of the image.

    Blots are the level set of a sum of potentials about random points (Blinn, 1982, doi:10.1145/357306.357310).
    """
    down, across, side = _places(images)
    centers = draws.uniform(2, DROPS) * 1.0 - 0.5
    weights = 0.3 + draws.uniform(DROPS)
    squares = MELTING * share[:, None] * weights / (weights.sum(1, keepdim=True) * math.pi)
    potential = torch.zeros_like(images[:, 0])
    for drop in range(DROPS):
        x, y = centers[:, 0, drop, None, None], centers[:, 1, drop, None, None]
        potential += squares[:, drop, None, None] / ((down - y) ** 2 + (across - x) ** 2 + 1e-4)
    there = _edge((potential.sqrt() - 1) * squares.sum(1).div(DROPS).sqrt()[:, None, None], side)[:, None]
    depth = 0.75 + 0.25 * draws.uniform(1, 1, 1)
    through = _color(images, STAIN) + 0.15 * (draws.uniform(images.shape[1], 1, 1) - 0.5)
    return images * (1 - there * depth * (1 - through))


def bubble(images: Tensor, radius: Tensor, draws: Draws) -> Tensor:
    """An air bubble under the glass, of radius ``radius`` in units of the shorter side: pale inside, with a dark rim and a
    bright spot."""
    down, across, side = _places(images)
    center = draws.uniform(2, 1, 1) * 0.6 - 0.3
    radius = radius[:, None, None]
    y, x = down - center[:, 0], across - center[:, 1]
    far = (y**2 + x**2).sqrt()
    inside = _edge(radius - far, side)[:, None]
    rim_width = 0.12 * radius + 0.008
    rim = torch.exp(-(((far - radius + rim_width) / rim_width) ** 2))[:, None] * inside
    washed = torch.lerp(images, _color(images, GLASS).expand_as(images), 0.62 * inside)
    angle = draws.uniform(1, 1) * 2 * math.pi
    spot_y, spot_x = y - 0.5 * radius * angle.sin(), x - 0.5 * radius * angle.cos()
    spot = torch.exp(-(spot_y**2 + spot_x**2) / (0.15 * radius + 1e-3) ** 2)[:, None] * inside
    return torch.lerp(washed * (1 - (1 - RIM) * rim), torch.ones_like(images), 0.8 * spot)


def occlusion(images: Tensor, share: Tensor, draws: Draws) -> Tensor:
    """Cover ``share`` of the image with a box or a disc in gray, black, white or the image's mean color."""
    down, across, side = _places(images)
    drawn = draws.uniform(5)[:, :, None, None]
    disc, place_y, place_x, stretch, color = drawn.unbind(1)
    share = share[:, None, None]
    tall = share.sqrt() * torch.exp((stretch - 0.5) * math.log(2))
    wide = share / tall.clamp_min(1e-6)
    radius = (share / math.pi).sqrt()
    reach_y, reach_x = torch.where(disc < 0.5, radius, tall / 2), torch.where(disc < 0.5, radius, wide / 2)
    y = down - (place_y - 0.5) * (down.abs().max() * 2 - 2 * reach_y).clamp_min(0)
    x = across - (place_x - 0.5) * (across.abs().max() * 2 - 2 * reach_x).clamp_min(0)
    box = torch.minimum(reach_y - y.abs(), reach_x - x.abs())
    there = _edge(torch.where(disc < 0.5, radius - (y**2 + x**2).sqrt(), box), side)[:, None]
    mean = steady_mean(images, (2, 3), keepdim=True)
    plain = (color * 3.999).floor()[:, None]  # 0 black, 1 gray, 2 white, 3 mean
    return torch.lerp(images, torch.where(plain < 3, plain / 2, mean).expand_as(images), there)


def _places(images: Tensor) -> tuple[Tensor, Tensor, int]:
    """Distance of pixels from the center in units of the shorter side, [H, 1] and [1, W], and that side in pixels."""
    height, width = images.shape[2:]
    side = min(height, width)
    down = (torch.arange(height, device=images.device) - (height - 1) / 2) / side
    across = (torch.arange(width, device=images.device) - (width - 1) / 2) / side
    return down[:, None], across[None, :], side


def _edge(depth: Tensor, side: int) -> Tensor:
    """Covered share of a pixel, 0 to 1, whose center lies ``depth`` (in units of the shorter side) within an outline."""
    return (depth * side + 0.5).clamp(0, 1)


def _color(images: Tensor, rgb: tuple[float, float, float]) -> Tensor:
    color = constant(rgb if images.shape[1] == 3 else (sum(rgb) / 3,), images.device)
    return color[None, :, None, None]
