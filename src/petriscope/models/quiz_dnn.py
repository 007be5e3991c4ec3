"""QuizDNN: nine convolutions of 64 channels whose inputs are sums of earlier outputs."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from petriscope.core.errors import RequestError
from petriscope.models.activations import Activation, activation
from petriscope.models.attention import Attention, attention_layers

WIDTH = 64


class Unit(nn.Sequential):
    """3x3 convolution with bias, activation, batch norm; then attention and dropout if asked for."""

    def __init__(self, channels: int, act: Activation, attention: Attention, dropout: float) -> None:
        super().__init__(
            nn.Conv2d(channels, WIDTH, 3, padding=1),
            activation(act),
            nn.BatchNorm2d(WIDTH),
            *attention_layers(attention, WIDTH),
            *([nn.Dropout2d(dropout)] if dropout else []),
        )


class QuizDNN(nn.Module):
    """Nine 3x3 convolutions in three groups; each takes the sum of its group's outputs so far.

    With the default options, 3 channels and 10 classes it has exactly 299,018 parameters. The sums are the shortcuts of
    He et al., 2016, arXiv:1512.03385, taken densely within a group.

    Args:
        channels, classes: of the input and the output.
        size: (height, width); 4 at least, since two poolings divide it by 4.
        activation: after each convolution, before batch norm.
        attention: after batch norm.
        dropout: chance that a whole channel is left out, after each unit. Tompson et al., 2015, arXiv:1411.4280.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        size: tuple[int, int],
        *,
        activation: Activation = "relu",
        attention: Attention = "none",
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        if min(size) < 4:
            raise RequestError(
                f"quiz-dnn needs images of 4x4 or more, not {size[0]}x{size[1]}; set data.size=4 or more"
            )
        inputs = [channels, *[WIDTH] * 8]
        self.blocks = nn.ModuleList(Unit(each, activation, attention, dropout) for each in inputs)
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Normalized float [B, C, H, W] -> logits [B, K]."""
        # Numbered as in the original network, where x4 and x8 are the poolings.
        to1, to2, to3, to5, to6, to7, to9, to10, to11 = self.blocks
        x1 = to1(images)
        x2 = to2(x1)
        x3 = to3(x1 + x2)
        x4 = F.max_pool2d(x1 + x2 + x3, 2)
        x5 = to5(x4)
        x6 = to6(x4 + x5)
        x7 = to7(x4 + x5 + x6)
        x8 = F.max_pool2d(x5 + x6 + x7, 2)
        x9 = to9(x8)
        x10 = to10(x8 + x9)
        x11 = to11(x8 + x9 + x10)
        return self.head(x11.mean((2, 3)))
