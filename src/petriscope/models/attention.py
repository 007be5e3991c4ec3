"""Attention over channels and places, for convolutional networks: what a model's `attention` option names."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Attention = Literal["none", "se", "cbam"]


def bottleneck(channels: int, reduction: int) -> nn.Sequential:
    """Two 1x1 convolutions with ReLU between, through channels / reduction channels, 8 at least."""
    inner = max(channels // reduction, 8)
    return nn.Sequential(nn.Conv2d(channels, inner, 1), nn.ReLU(), nn.Conv2d(inner, channels, 1))


class SE(nn.Module):
    """Squeeze and excitation: every channel is scaled by a gate computed from the means of all channels.

    Hu et al., 2018, "Squeeze-and-Excitation Networks", arXiv:1709.01507.

    Args:
        channels: of the features, [B, C, H, W] in and out.
        reduction: the two-layer network that makes the gates has channels / reduction hidden units.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.gate = bottleneck(channels, reduction)

    def forward(self, features: Tensor) -> Tensor:
        return features * self.gate(features.mean((2, 3), keepdim=True)).sigmoid()


class CBAM(nn.Module):
    """Convolutional block attention: channels are scaled by a gate each, then places.

    The gates of channels come from their means and maxima, through one shared network; those of places from the mean
    and the maximum over channels, through one convolution. Woo et al., 2018, "CBAM: Convolutional Block Attention
    Module", arXiv:1807.06521.

    Args:
        channels: of the features, [B, C, H, W] in and out.
        reduction: as in `SE`.
        kernel: side of the convolution over places.
    """

    def __init__(self, channels: int, reduction: int = 16, kernel: int = 7) -> None:
        super().__init__()
        self.gate = bottleneck(channels, reduction)
        self.place = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        channel = self.gate(features.mean((2, 3), keepdim=True)) + self.gate(features.amax((2, 3), keepdim=True))
        features = features * channel.sigmoid()
        summary = torch.cat([features.mean(1, keepdim=True), features.amax(1, keepdim=True)], 1)
        return features * self.place(summary).sigmoid()


def attention_layers(kind: Attention, channels: int) -> list[nn.Module]:
    """The layers to append for ``attention: kind``: one, or none, so that the numbers in parameter names stay."""
    if kind == "none":
        return []
    return [SE(channels) if kind == "se" else CBAM(channels)]
