"""InceptionNet for small images: GoogLeNet's nine modules after a stem that keeps the resolution."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from petriscope.models.attention import Attention, attention_layers
from petriscope.models.conv_block import ConvBlock

# Table 1 of the paper, one row per module: 1x1; 3x3 reduce, 3x3; 5x5 reduce, 5x5; after pooling. The groups are pooled apart.
GROUPS = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


class InceptionModule(nn.Module):
    """Convolutions of three sizes and a pooling side by side; their channels are put together."""

    def __init__(self, channels: int, widths: tuple[int, ...], attention: Attention) -> None:
        super().__init__()
        one, three_in, three, five_in, five, pooled = widths
        self.one = ConvBlock(channels, one, 1)
        self.three = nn.Sequential(ConvBlock(channels, three_in, 1), ConvBlock(three_in, three, 3))
        self.five = nn.Sequential(ConvBlock(channels, five_in, 1), ConvBlock(five_in, five, 5))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), ConvBlock(channels, pooled, 1))
        self.out = one + three + five + pooled
        self.attention = nn.Sequential(*attention_layers(attention, self.out))

    def forward(self, features: Tensor) -> Tensor:
        views = [self.one(features), self.three(features), self.five(features), self.pooled(features)]
        return self.attention(torch.cat(views, 1))


class Inception(nn.Module):
    """GoogLeNet's nine Inception modules at half their width, for images of 28 to 96 pixels.

    Szegedy et al., 2015, "Going Deeper with Convolutions", arXiv:1409.4842. The stem halves the sides once where the
    paper's divides them by 8; every convolution has batch norm (Ioffe and Szegedy, 2015, arXiv:1502.03167), with
    which the auxiliary classifiers are not needed.

    Args:
        channels, classes: of the input and the output.
        size: (height, width); any, the network pools globally.
        width: share of the paper's channels.
        dropout: before the logits.
        attention: after each module.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        size: tuple[int, int],
        *,
        width: Annotated[float, Field(gt=0, le=2)] = 0.5,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.4,
        attention: Attention = "none",
    ) -> None:
        super().__init__()

        def scaled(paper: int) -> int:
            return max(1, round(paper * width))

        before = scaled(64)
        self.stem = nn.Sequential(ConvBlock(channels, before), nn.MaxPool2d(3, 2, 1))
        groups: list[nn.Module] = []
        for index, rows in enumerate(GROUPS):
            group: list[nn.Module] = [nn.MaxPool2d(3, 2, 1)] if index else []
            for row in rows:
                module = InceptionModule(before, tuple(map(scaled, row)), attention)
                group.append(module)
                before = module.out
            groups.append(nn.Sequential(*group))
        self.blocks = nn.Sequential(*groups)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(before, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Normalized float [B, C, H, W] -> logits [B, K]."""
        return self.head(self.dropout(self.blocks(self.stem(images)).mean((2, 3))))
