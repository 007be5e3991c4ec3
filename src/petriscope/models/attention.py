"""Attention over channels and places for convolutional networks: what a model's `attention` option names.

timm's ``SqueezeExcite`` computes the same as `SE`, but importing timm takes longer than importing torch, and models with
`SE` need nothing else of it. timm's ``CbamModule`` differs from the paper: it normalizes the scores of places by batch.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Attention = Literal["none", "se", "cbam"]


def bottleneck(channels: int, reduction: int) -> nn.Sequential:
    """Two 1x1 convolutions with a ReLU in between; the inner one has channels / reduction channels, at least 8."""
    inner = max(channels // reduction, 8)
    return nn.Sequential(nn.Conv2d(channels, inner, 1), nn.ReLU(), nn.Conv2d(inner, channels, 1))


class SE(nn.Module):
    """Squeeze and excitation: each channel is multiplied by a gate, which a small network computes from all channel means.

    Hu et al., 2018, "Squeeze-and-Excitation Networks", arXiv:1709.01507.

    Args:
        channels: of the features, [B, C, H, W] in and out.
        reduction: the network that computes the gates has channels / reduction hidden units, at least 8.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.gate = bottleneck(channels, reduction)

    def forward(self, features: Tensor) -> Tensor:
        return features * self.gate(features.mean((2, 3), keepdim=True)).sigmoid()


class CBAM(nn.Module):
    """Convolutional block attention: each channel is multiplied by a gate, and then each place.

    A shared network computes the gates of the channels from their means and maxima. A convolution computes those of the
    places from the mean and the maximum over channels. Woo et al., 2018, "CBAM: Convolutional Block Attention Module",
    arXiv:1807.06521.

    Args:
        channels: of the features, [B, C, H, W] in and out.
        reduction: as in `SE`.
        kernel: side of the convolution over places, in pixels.
    """

    def __init__(self, channels: int, reduction: int = 16, kernel: int = 7) -> None:
        super().__init__()
        self.gate = bottleneck(channels, reduction)
        self.place = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        channel = self.gate(features.mean((2, 3), keepdim=True)) + self.gate(self._largest_of_places(features))
        features = features * channel.sigmoid()
        summary = torch.cat([features.mean(1, keepdim=True), self._largest_of_channels(features)], 1)
        return features * self.place(summary).sigmoid()

    # In training by pooling, whose gradient goes to one of the largest values: that of amax counts ties in int64, which takes a
    # third of a step.

    def _largest_of_places(self, features: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, 1, 1]."""
        return F.adaptive_max_pool2d(features, 1) if self.training else features.amax((2, 3), keepdim=True)

    def _largest_of_channels(self, features: Tensor) -> Tensor:
        """[B, C, H, W] to [B, 1, H, W]."""
        if not self.training:
            return features.amax(1, keepdim=True)
        places = features.permute(0, 2, 3, 1).flatten(1, 2)  # no copy where channels are last in memory
        return F.max_pool1d(places, places.shape[2]).view(len(features), 1, *features.shape[2:])


def attention_layers(kind: Attention, channels: int) -> list[nn.Module]:
    """The layers to append for ``attention: kind``: one or none, so that parameter names do not depend on an empty one."""
    if kind == "none":
        return []
    return [SE(channels) if kind == "se" else CBAM(channels)]
