"""What models of masks share."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from petriscope.models.mask_head import MaskHead

LEAST_VARIANCE = 0.01  # of an image that is standardized, so that the noise of a blank one stays small


def padded(images: Tensor, multiple: int) -> Tensor:
    """Images [B, C, H, W], their last row and column repeated until both sides are multiples."""
    down, across = (-side % multiple for side in images.shape[2:])
    return F.pad(images, (0, across, 0, down), mode="replicate") if down or across else images


class Segmenter(nn.Module):
    """Images are padded to sides that the body can halve, and its features become logits.

    Args:
        body: [B, C patch^2, H / patch, W / patch] -> features [B, width, H / patch, W / patch]; with a ``bottleneck``, the
            module that gives the coarsest features.
        head: makes logits of those.
        multiple: of which the body takes sides.
        patch: pixels of so many rows and columns become channels of one place before the body, which then has a
            ``patch ** 2``-th of the work; logits are interpolated back.
        standardize: bring each image to zero mean and unit variance first, over all of its pixels and channels, so that
            its light and its contrast no longer count.
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
