"""Occlusion: cover parts of the image, and measure how far the confidence falls. It works for any network."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from petriscope.explain.question import Question

Share = Annotated[float, Field(gt=0, lt=1)]
BATCH = 256  # covered images at a time
BATCH_PIXELS = 2**21


def occlusion(
    model: nn.Module, images: Tensor, question: Question, *, window: Share = 0.35, step: Share = 0.125
) -> Tensor:
    """Fall of the confidence when a window is covered with the mean color of the training images. Zeiler and Fergus, 2014,
    "Visualizing and Understanding Convolutional Networks", arXiv:1311.2901.

    The confidence is the log-probability of the class, and for segmentation its mean probability over the region.

    Args:
        model: in evaluation mode.
        images: normalized float32 [B, C, H, W].
        question: the class of each image, and for segmentation the region.
        window: side of the window as a share of the image's sides. If it is much smaller than the object, the rest of the
            object is enough for the prediction, and maps show little.
        step: distance between windows, as a share of the image's sides.

    Returns:
        float32 [B, H, W], the mean over the windows that cover a pixel; in nats, and for segmentation 0 to 1.
    """
    count, _, height, width = images.shape
    covers = windows(height, width, window, step).to(images.device)
    size = max(1, min(BATCH, BATCH_PIXELS // (height * width)))
    total = len(covers) * count
    with torch.no_grad():
        before = question.confidence(model(images).float())
        after = torch.empty(total, device=images.device)
        for start in range(0, total, size):
            index = torch.arange(start, min(start + size, total), device=images.device)
            image, cover = index % count, index // count
            shown = images[image] * ~covers[cover][:, None]  # 0 is the mean color
            after[index] = question.take(image).confidence(model(shown).float())
    fall = before - after.view(len(covers), count)
    weights = covers.flatten(1).float()
    return (fall.T @ weights / weights.sum(0)).view(count, height, width)


def windows(height: int, width: int, window: float, step: float) -> Tensor:
    """Windows that together cover the whole image, bool [W, height, width]."""
    tall, wide = max(1, round(window * height)), max(1, round(window * width))
    out = []
    for top in _starts(height, tall, max(1, round(step * height))):
        for left in _starts(width, wide, max(1, round(step * width))):
            cover = torch.zeros(height, width, dtype=torch.bool)
            cover[top : top + tall, left : left + wide] = True
            out.append(cover)
    return torch.stack(out)


def _starts(length: int, side: int, step: int) -> list[int]:
    """First pixels of windows along a side; the last window ends at the border of the image."""
    return [*range(0, length - side, step), length - side]
