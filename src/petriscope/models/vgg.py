"""VGG for small images: twelve convolutions and three fully connected layers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from petriscope.core.errors import RequestError
from petriscope.models.attention import Attention
from petriscope.models.conv_block import ConvBlock

Width = Annotated[int, Field(ge=1)]
DEPTHS = (2, 2, 4, 4)  # of VGG-19 without its fifth stage, which would reduce small images to nothing


class VGG(nn.Module):
    """Four stages of 3x3 convolutions, with batch norm, that pool at their ends; then three fully connected layers.

    Simonyan and Zisserman, 2015, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
    arXiv:1409.1556. It is VGG-19 of the paper without the fifth stage, and with batch norm.

    Args:
        channels, classes: of the input and the output.
        size: (height, width); 16 at least, since four poolings divide it by 16.
        widths: channels of the four stages, which have 2, 2, 4 and 4 convolutions.
        hidden: units of the two hidden fully connected layers.
        dropout: after each of them.
        attention: at the end of each stage.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        size: tuple[int, int],
        *,
        widths: tuple[Width, Width, Width, Width] = (64, 128, 256, 512),
        hidden: Annotated[int, Field(ge=1)] = 512,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5,
        attention: Attention = "none",
    ) -> None:
        super().__init__()
        height, width = size
        if min(size) < 16:
            raise RequestError(f"vgg needs images of 16x16 or more, not {height}x{width}; set data.size=16 or more")
        blocks: list[nn.Module] = []
        for out, depth in zip(widths, DEPTHS, strict=True):
            for position in range(depth):
                last = position == depth - 1
                blocks.append(ConvBlock(channels, out, pool=last, attention=attention if last else "none"))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * (height // 16) * (width // 16), hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Normalized float [B, C, H, W] -> logits [B, K]."""
        return self.head(self.blocks(images))
