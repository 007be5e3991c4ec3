"""The baseline: three blocks of convolution and pooling, then fully connected layers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from petriscope.core.errors import RequestError
from petriscope.models.attention import Attention, attention_layers
from petriscope.models.norms import norm as make_norm

Width = Annotated[int, Field(ge=1)]


class SimpleCNN(nn.Module):
    """Three blocks of 3x3 convolution, optional norm, ReLU and 2x2 max pooling; then a hidden layer and the logits.

    LeCun et al., 1998, "Gradient-Based Learning Applied to Document Recognition", Proceedings of the IEEE.

    Args:
        channels, classes: of the input and the output.
        size: (height, width); 8 at least, since three poolings divide it by 8.
        norm: after each convolution: ``batch``; ``group``; ``layer``, over channels and space; or none.
        dropout: before each fully connected layer.
        widths: channels of the three convolutions.
        hidden: units of the hidden layer.
        attention: at the end of each block.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        size: tuple[int, int],
        *,
        norm: Literal["none", "batch", "group", "layer"] = "none",
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        widths: tuple[Width, Width, Width] = (32, 64, 128),
        hidden: Annotated[int, Field(ge=1)] = 128,
        attention: Attention = "none",
    ) -> None:
        super().__init__()
        if min(size) < 8:
            raise RequestError(
                f"simple-cnn needs images of 8x8 or more, not {size[0]}x{size[1]}; set data.size=8 or more"
            )
        layers: list[nn.Module] = []
        height, width = size
        for out in widths:
            layers.append(nn.Conv2d(channels, out, 3, padding=1, bias=norm == "none"))
            if norm == "layer":
                layers.append(nn.LayerNorm([out, height, width]))
            elif norm != "none":
                layers.append(make_norm(norm, out))
            # ReLU before or after pooling gives the same numbers; after, it has a quarter of the work.
            layers += [nn.MaxPool2d(2), nn.ReLU(), *attention_layers(attention, out)]
            channels, height, width = out, height // 2, width // 2
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(channels * height * width, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Normalized float [B, C, H, W] -> logits [B, K]."""
        return self.head(self.features(images))
