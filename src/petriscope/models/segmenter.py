"""The common part of the segmentation models."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from petriscope.models.mask_head import MaskHead

LEAST_VARIANCE = 0.01  # added when an image is standardized, so that the noise of a blank one stays small


def padded(images: Tensor, multiple: int) -> Tensor:
    """Images [B, C, H, W], padded with their last row and column until both sides are multiples of ``multiple``."""
    down, across = (-side % multiple for side in images.shape[2:])
    return F.pad(images, (0, across, 0, down), mode="replicate") if down or across else images


class Segmenter(nn.Module):
    """A body and a head that turn images of any size into logits per pixel; images are padded to sides the body can halve.

    Args:
        body: [B, C patch^2, H / patch, W / patch] -> features [B, width, H / patch, W / patch]; with a ``bottleneck``, the
            module that gives the coarsest features.
        head: maps the features to logits.
        multiple: the body takes images whose sides are multiples of this.
        patch: each square of so many pixels a side becomes the channels of one place before the body, which divides its
            work by ``patch ** 2``; logits are interpolated back.
        standardize: bring each image to zero mean and unit variance over all of its pixels and channels first, so that its
            brightness and contrast do not matter.
    """

    dense = True

    def __init__(self, body: nn.Module, head: MaskHead, multiple: int, patch: int, standardize: bool) -> None:
        super().__init__()
        self.body, self.head = body, head
        self.multiple, self.patch, self.standardize = multiple * patch, patch, standardize
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is None:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def bottleneck(self) -> nn.Module:
        return cast(nn.Module, self.body.bottleneck)

    def forward(self, images: Tensor) -> Tensor:
        """Normalized float [B, C, H, W] -> logits [B, K, H, W]."""
        height, width = images.shape[2:]
        if self.standardize:
            images = F.layer_norm(images, images.shape[1:], eps=LEAST_VARIANCE)
        images = padded(images, self.multiple)
        logits = self.head(self.body(F.pixel_unshuffle(images, self.patch) if self.patch > 1 else images))
        if self.patch > 1:
            logits = F.interpolate(logits, scale_factor=float(self.patch), mode="bilinear", align_corners=False)
        return logits[:, :, :height, :width]
