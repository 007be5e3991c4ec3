"""Fewer pixels, JPEG compression and sensor noise."""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from petriscope.augment.base import constant
from petriscope.augment.corruptions.draws import Draws
from petriscope.core.drawing import BT601

BLOCK = 8
# Annex K of ITU-T T.81, the tables that libjpeg scales by the quality
LUMA_STEPS = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA_STEPS = (
    *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99),
    *(24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 32),
)
TO_YCBCR = (BT601, (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))


def pixelate(images: Tensor, width: Tensor, draws: Draws) -> Tensor:
    """Means over square cells of width ``width``, in units of the shorter side; a cell may begin within a pixel."""
    height, length = images.shape[2:]
    cells = (min(height, length) * width).clamp_min(1.0)  # in pixels
    return _cells(height, cells) @ images @ _cells(length, cells).transpose(2, 3)


def _cells(length: int, width: Tensor) -> Tensor:
    """The means along one axis as a matrix, [B, 1, length, length]."""
    count = (length / width).round().clamp(1, length)
    width = (length / count)[:, None, None]
    # Reading the largest count from a GPU would wait for it. Cells beyond the last one share nothing with any pixel.
    most = int(count.max()) if count.device.type == "cpu" else length
    cell = torch.arange(most, device=width.device) * width
    pixel = torch.arange(length, device=width.device)[:, None].float()
    shared = (torch.minimum(pixel + 1, cell + width) - torch.maximum(pixel, cell)).clamp_min(0)
    return (shared @ shared.transpose(1, 2) / width)[:, None]


def gaussian_noise(images: Tensor, std: Tensor, draws: Draws) -> Tensor:
    """Add independent normal noise; ``std`` is in units of the full range."""
    return images + std[:, None, None, None] * draws.normal(*images.shape[1:])


def jpeg(images: Tensor, quality: Tensor, draws: Draws) -> Tensor:
    """The loss of baseline JPEG as in libjpeg at this quality: chroma at half the resolution, and quantized cosine
    coefficients of 8 x 8 pixels. Entropy coding is lossless and left out. ITU-T T.81, 1992.
    """
    channels, height, width = images.shape[1:]
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    padding = (0, -width % (2 * BLOCK), 0, -height % (2 * BLOCK))
    padded = F.pad(images, padding, mode="replicate") * 255
    if channels == 1:
        return _quantized(padded - 128, LUMA_STEPS, scale)[:, :, :height, :width].add(128).clamp(0, 255) / 255
    to_ycbcr = constant(TO_YCBCR, images.device)
    red, green, blue = padded.unbind(1)
    ycbcr = torch.stack([row[0] * red + row[1] * green + row[2] * blue for row in to_ycbcr], 1)
    luma = _quantized(ycbcr[:, :1] - 128, LUMA_STEPS, scale) + 128
    chroma = _quantized(F.avg_pool2d(ycbcr[:, 1:], 2), CHROMA_STEPS, scale)
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
    blue_less, red_less = chroma.unbind(1)
    y = luma[:, 0]
    back = (y + 1.402 * red_less, y - 0.344136286 * blue_less - 0.714136286 * red_less, y + 1.772 * blue_less)
    return torch.stack(back, 1)[:, :, :height, :width].clamp(0, 255) / 255


def _quantized(planes: Tensor, steps: tuple[int, ...], scale: Tensor) -> Tensor:
    """Each 8 x 8 block with its cosines rounded to multiples of the steps; [B, C, H, W], sides multiples of 8."""
    batch, channels, height, width = planes.shape
    blocks = planes.reshape(batch, channels, height // BLOCK, BLOCK, width // BLOCK, BLOCK).transpose(3, 4)
    base = constant(steps, planes.device).float()
    table = ((base * scale[:, None] + 50) / 100).floor().clamp(1, 255)[:, None, None]
    cosines = _cosines(planes.device)
    shape = blocks.shape
    coefficients = blocks.reshape(batch, channels, -1, BLOCK * BLOCK) @ cosines.T
    kept = (coefficients / table).round_() * table
    return (kept @ cosines).view(shape).transpose(3, 4).reshape(planes.shape)


@cache
def _cosines(device: torch.device) -> Tensor:
    """The cosine transform of a block as one orthogonal matrix, float32 [64, 64]."""
    with torch.inference_mode(False):  # see `constant`
        at = torch.arange(BLOCK)
        rows = torch.cos((2 * at[None, :] + 1) * at[:, None] * (math.pi / (2 * BLOCK))) * math.sqrt(2 / BLOCK)
        rows[0] /= math.sqrt(2)
        return torch.kron(rows, rows).to(device)
