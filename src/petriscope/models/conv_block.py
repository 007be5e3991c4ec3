"""Convolution, norm and ReLU, the unit of the plain networks."""

from __future__ import annotations

from torch import nn

from petriscope.models.attention import Attention, attention_layers
from petriscope.models.norms import Norm
from petriscope.models.norms import norm as make_norm


class ConvBlock(nn.Sequential):
    """Convolution without bias, norm, ReLU; float [B, C, H, W] -> [B, out, H, W], halved where it pools.

    It is a class so that `petriscope.models.layers.ordered_blocks` takes it as one unit.

    Args:
        channels, out: of the input and the output.
        kernel: side of the convolution.
        pool: 2x2 max pooling before ReLU, which gives the same numbers as after it for a quarter of the work.
        attention: after ReLU.
        norm: see `petriscope.models.norms.norm`.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        kernel: int = 3,
        pool: bool = False,
        attention: Attention = "none",
        norm: Norm = "batch",
    ) -> None:
        super().__init__(
            nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False),
            make_norm(norm, out),
            *([nn.MaxPool2d(2)] if pool else []),
            nn.ReLU(),
            *attention_layers(attention, out),
        )
