"""A plain convolutional network, the baseline for ConvNeXt at 96 pixels."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from petriscope.core.errors import RequestError
from petriscope.models.conv_block import ConvBlock
from petriscope.models.norms import Norm

Width = Annotated[int, Field(ge=1)]


class CustomCNN(nn.Module):
    """Stages of 3x3 convolution, norm, ReLU and 2x2 max pooling; global average pooling, dropout, the logits.

    Batch norm: Ioffe and Szegedy, 2015, arXiv:1502.03167; global average pooling: Lin et al., 2014, arXiv:1312.4400.

    Args:
        channels, classes: of the input and the output.
        size: (height, width); each stage halves it, so 16 at least for four.
        widths: channels of each stage.
        norm: after each convolution: ``batch``; or ``group``, which does not depend on other images.
        dropout: before the logits.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        size: tuple[int, int],
        *,
        widths: tuple[Width, ...] = (32, 64, 128, 256),
        norm: Norm = "batch",
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.35,
    ) -> None:
        super().__init__()
        if not widths or min(size) < 2 ** len(widths):
            raise RequestError(
                f"custom-cnn: {len(widths)} widths (one per stage) for images of {size[0]}x{size[1]}; give at "
                f"least one, and no more than the sides can be halved ({len(widths)} need {2 ** len(widths)} pixels)"
            )
        inputs = [channels, *widths]
        self.blocks = nn.Sequential(
            *(ConvBlock(i, out, pool=True, norm=norm) for i, out in zip(inputs, widths, strict=False))
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Normalized float [B, C, H, W] -> logits [B, K]."""
        return self.head(self.dropout(self.blocks(images).mean((2, 3))))
