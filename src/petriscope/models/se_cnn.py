"""A compact residual network with squeeze and excitation: under half a million parameters, for images of 64 pixels."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from petriscope.core.errors import RequestError
from petriscope.models.activations import Activation
from petriscope.models.activations import activation as make
from petriscope.models.attention import SE
from petriscope.models.drop_path import drop_path
from petriscope.models.norms import Norm
from petriscope.models.norms import norm as make_norm

Width = Annotated[int, Field(ge=1)]
Depth = Annotated[int, Field(ge=1, le=100)]
REDUCTION = 4  # of squeeze and excitation; the paper's 16 would leave 2 hidden units of 32 channels


class SEBlock(nn.Module):
    """Two 3x3 convolutions with norms, gated, beside a shortcut.

    A shortcut that halves the sides takes means of 2x2, which drops no pixel, unlike a 1x1 convolution of stride 2: He
    et al., 2019, "Bag of Tricks for Image Classification with Convolutional Neural Networks", arXiv:1812.01187.
    """

    def __init__(self, channels: int, out: int, down: bool, act: Activation, drop: float, kind: Norm) -> None:
        super().__init__()
        self.drop = drop
        self.conv1 = nn.Conv2d(channels, out, 3, 2 if down else 1, 1, bias=False)
        self.norm1, self.act1 = make_norm(kind, out), make(act)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2, self.se = make_norm(kind, out), SE(out, REDUCTION)
        self.shortcut = nn.Sequential()
        if down:
            self.shortcut.append(nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False))
        if channels != out:
            self.shortcut.extend([nn.Conv2d(channels, out, 1, bias=False), make_norm(kind, out)])
        self.act2 = make(act)
        nn.init.zeros_(self.norm2.weight)  # a block starts as its shortcut: Goyal et al., 2017, arXiv:1706.02677

    def forward(self, features: Tensor) -> Tensor:
        change = self.se(self.norm2(self.conv2(self.act1(self.norm1(self.conv1(features))))))
        return self.act2(self.shortcut(features) + drop_path(change, self.drop, self.training))


class SECNN(nn.Module):
    """Compact residual network with squeeze and excitation in every block: 0.42 M parameters.

    Hu et al., 2018, "Squeeze-and-Excitation Networks", arXiv:1709.01507.

    Args:
        channels, classes: of the input and the output.
        size: (height, width); a side of 2 at least where the stem pools.
        widths: channels of each stage; the sides halve between stages.
        depths: blocks of each stage.
        pool: also halve the sides after the first convolution; right for images of 64 pixels, false for 32 and below.
        norm: after each convolution: ``batch``, or ``group``, which does not depend on the other images.
        activation: after each convolution and each sum.
        dropout: before the logits.
        drop_path: chance that the change of the last block is left out for an image; for earlier blocks linearly less.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        size: tuple[int, int],
        *,
        widths: tuple[Width, ...] = (32, 64, 128),
        depths: tuple[Depth, ...] = (2, 2, 1),
        pool: bool = True,
        norm: Norm = "batch",
        activation: Activation = "relu",
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        if not widths or len(widths) != len(depths):
            raise RequestError(f"se-cnn: {len(widths)} widths and {len(depths)} depths; give one of each per stage")
        if pool and min(size) < 2:
            raise RequestError(f"se-cnn cannot pool images of {size[0]}x{size[1]}; set model.pool=false")
        self.stem = nn.Sequential(
            nn.Conv2d(channels, widths[0], 3, padding=1, bias=False),
            make_norm(norm, widths[0]),
            make(activation),
            *([nn.MaxPool2d(2)] if pool else []),
        )
        blocks: list[nn.Module] = []
        before, total = widths[0], sum(depths)
        for stage, (out, depth) in enumerate(zip(widths, depths, strict=True)):
            for position in range(depth):
                down = stage > 0 and position == 0
                blocks.append(SEBlock(before, out, down, activation, drop_path * (len(blocks) + 1) / total, norm))
                before = out
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * before, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Normalized float [B, C, H, W] -> logits [B, K]."""
        features = self.blocks(self.stem(images))
        return self.head(self.dropout(torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)))
