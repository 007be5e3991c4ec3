"""Defocus and motion blur by kernels of known spectrum, so that their width need not be a whole number of pixels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from petriscope.augment.corruptions.draws import Draws

BORDER = 0.2  # mirrored pixels around an image, in shorter sides: more than the widest kernel reaches


def defocus_blur(images: Tensor, radius: Tensor, draws: Draws) -> Tensor:
    """Mean over a disc of radius ``radius``, in units of the shorter side: the image of a point out of focus."""
    pixels = radius * min(images.shape[2:])
    down, across, padding = frequencies(images)
    turn = 2 * math.pi * pixels[:, None, None] * (down**2 + across**2).sqrt()
    spectrum = torch.where(turn < 1e-3, 1.0, 2 * torch.special.bessel_j1(turn) / turn.clamp_min(1e-3))
    return filtered(images, spectrum, padding)


def motion_blur(images: Tensor, length: Tensor, draws: Draws) -> Tensor:
    """Mean along a line of length ``length``, in units of the shorter side, at a random angle."""
    pixels = length * min(images.shape[2:])
    angle = draws.uniform(1, 1) * math.pi
    down, across, padding = frequencies(images)
    return filtered(images, torch.sinc(pixels[:, None, None] * (down * angle.sin() + across * angle.cos())), padding)


def frequencies(images: Tensor) -> tuple[Tensor, Tensor, int]:
    """Cycles per pixel down and across, [H', 1] and [1, W'], for images with a mirrored border of width ``padding``."""
    height, width = images.shape[2:]
    side = min(height, width)
    padding = min(side - 1, math.ceil(side * BORDER))
    down = torch.fft.fftfreq(height + 2 * padding, device=images.device)[:, None]
    across = torch.fft.rfftfreq(width + 2 * padding, device=images.device)[None, :]
    return down, across, padding


def filtered(images: Tensor, spectrum: Tensor, padding: int) -> Tensor:
    """Multiply the spectra of images by ``spectrum``, [B, H', W'], the same for all channels."""
    height, width = images.shape[2:]
    padded = F.pad(images, (padding,) * 4, mode="reflect")
    blurred = torch.fft.irfft2(torch.fft.rfft2(padded) * spectrum[:, None], s=padded.shape[2:])
    return blurred[:, :, padding : padding + height, padding : padding + width]
