"""A convolutional autoencoder whose encoder feeds a classifier."""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from petriscope.core.errors import RequestError
from petriscope.models.attention import Attention
from petriscope.models.conv_block import ConvBlock
from petriscope.models.weights import Statistics, WeightsFile, load_weights, read_weights

Width = Annotated[int, Field(ge=1)]


class Autoencoder(nn.Module):
    """An encoder, a decoder and a classifier on the code, trained jointly or in two stages.

    Masci et al., 2011, "Stacked Convolutional Auto-Encoders for Hierarchical Feature Extraction", ICANN. The encoder's
    blocks pool; the decoder upsamples before it convolves, which avoids checkerboard patterns (Odena et al., 2016, Distill,
    doi:10.23915/distill.00003).

    Joint training adds the reconstruction loss to the classifier's. For two stages, train first with
    ``encoder_learns: reconstruction``, then name that run's model in ``weights`` and set ``reconstruction: 0``, with
    or without a frozen encoder.

    Args:
        channels, classes: of the input and the output.
        size: (height, width); each block halves it, so 16 at least for four.
        widths: channels of the encoder's blocks; the decoder's are the same in reverse.
        hidden: units of the classifier's hidden layer.
        dropout: before each fully connected layer.
        attention: at the end of each block of the encoder.
        reconstruction: weight of the reconstruction loss, the mean squared error of the normalized images.
        encoder_learns: from both losses, or from the reconstruction only; then no gradient passes from the classifier to
            the code.
        weights: a Petriscope model file to start from, such as that of a first stage. Its head is used if it has as many
            classes.
    """

    expects: Statistics | None = None

    def __init__(
        self,
        channels: int,
        classes: int,
        size: tuple[int, int],
        *,
        widths: tuple[Width, ...] = (32, 64, 128, 256),
        hidden: Annotated[int, Field(ge=1)] = 128,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        attention: Attention = "none",
        reconstruction: Annotated[float, Field(ge=0)] = 1.0,
        encoder_learns: Literal["both", "reconstruction"] = "both",
        weights: WeightsFile = "none",
    ) -> None:
        super().__init__()
        if not widths or min(size) < 2 ** len(widths):
            raise RequestError(
                f"autoencoder: {len(widths)} widths (one per block) for images of {size[0]}x{size[1]}; give at "
                f"least one, and no more than the sides can be halved ({len(widths)} need {2 ** len(widths)} pixels)"
            )
        self.reconstruction, self.encoder_learns = reconstruction, encoder_learns
        self.sizes = [(size[0] >> level, size[1] >> level) for level in reversed(range(len(widths)))]
        inputs = [channels, *widths]
        self.blocks = nn.Sequential(
            *(ConvBlock(i, out, pool=True, attention=attention) for i, out in zip(inputs, widths, strict=False))
        )
        outputs = [*reversed(widths[:-1]), widths[0]]
        self.decoder = nn.ModuleList(ConvBlock(i, out) for i, out in zip(reversed(widths), outputs, strict=True))
        self.to_image = nn.Conv2d(widths[0], channels, 1)
        self.head = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(widths[-1], hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )
        if weights != "none":
            file = read_weights(weights)
            load_weights(self, file, ["head"])
            self.expects = file.statistics

    def encode(self, images: Tensor) -> Tensor:
        """Normalized float [B, C, H, W] -> the code, [B, widths[-1], H / 2^n, W / 2^n]."""
        return self.blocks(images)

    def decode(self, code: Tensor) -> Tensor:
        """The code -> images, float [B, C, H, W], in the units of the normalized input."""
        for size, block in zip(self.sizes, self.decoder, strict=True):
            code = block(F.interpolate(code, size, mode="nearest"))
        return self.to_image(code)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Normalized float [B, C, H, W] -> the same images by way of the code, [B, C, H, W]."""
        return self.decode(self.encode(images))

    def classify(self, code: Tensor) -> Tensor:
        """The code -> logits [B, K]."""
        return self.head(code.mean((2, 3)))

    def forward(self, images: Tensor) -> Tensor:
        """Normalized float [B, C, H, W] -> logits [B, K]."""
        return self.classify(self.encode(images))

    def forward_with_loss(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K], and the weighted reconstruction loss to add to the classifier's, a float32 scalar."""
        code = self.encode(images)
        logits = self.classify(code if self.encoder_learns == "both" else code.detach())
        if not self.reconstruction:
            return logits, images.new_zeros(())
        return logits, self.reconstruction * F.mse_loss(self.decode(code).float(), images.float())
