"""Occlusion: cover a part of the image, and see how much less sure the network is. Works for any network."""

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
    """How far the log-probability of a class falls when a window over each place is filled with the training images'
    mean color; of masks, its mean probability over the region. Zeiler and Fergus, 2014, "Visualizing and Understanding
    Convolutional Networks", arXiv:1311.2901.

    Args:
        model: in evaluation mode.
        images: normalized float32 [B, C, H, W].
        question: the class of each image, and of masks the region.
        window, step: side of the window and distance to the next, shares of the image's sides. A window much smaller
            than the object leaves enough of it to be known by, and the maps say little.

    Returns:
        float32 [B, H, W], in nats, of masks a share: the mean over the windows that cover a pixel.
    """
    count, _, height, width = images.shape
    covers = windows(height, width, window, step).to(images.device)
    size = max(1, min(BATCH, BATCH_PIXELS // (height * width)))
    total = len(covers) * count
    with torch.no_grad():
        before = question.belief(model(images).float())
        after = torch.empty(total, device=images.device)
        for start in range(0, total, size):
            index = torch.arange(start, min(start + size, total), device=images.device)
            image, cover = index % count, index // count
            shown = images[image] * ~covers[cover][:, None]  # 0 is the mean color
            after[index] = question.take(image).belief(model(shown).float())
    fall = before - after.view(len(covers), count)
    weights = covers.flatten(1).float()
    return (fall.T @ weights / weights.sum(0)).view(count, height, width)


def windows(height: int, width: int, window: float, step: float) -> Tensor:
    """Windows that between them cover the whole image, bool [W, height, width]."""
    tall, wide = max(1, round(window * height)), max(1, round(window * width))
    out = []
    for top in _starts(height, tall, max(1, round(step * height))):
        for left in _starts(width, wide, max(1, round(step * width))):
            cover = torch.zeros(height, width, dtype=torch.bool)
            cover[top : top + tall, left : left + wide] = True
            out.append(cover)
    return torch.stack(out)


def _starts(length: int, side: int, step: int) -> list[int]:
    """The last window ends with the image."""
    return [*range(0, length - side, step), length - side]
