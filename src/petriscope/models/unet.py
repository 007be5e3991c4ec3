"""U-Net: logits per pixel. The decoder gets back the detail that the encoder loses from the levels of the encoder."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from petriscope.core.errors import RequestError
from petriscope.models.attention import Attention, attention_layers
from petriscope.models.attention_gate import AttentionGate
from petriscope.models.mask_head import MaskHead
from petriscope.models.segmenter import Segmenter

Width = Annotated[int, Field(ge=1)]
Chance = Annotated[float, Field(ge=0, lt=1)]
Patch = Annotated[int, Field(ge=1, le=8)]
Steps = Annotated[int, Field(ge=0, le=64)]
WIDTHS = (24, 48, 96, 192)


class DoubleConv(nn.Module):
    """Two convolutions of one size, each with batch norm and ReLU; float [B, C, H, W] -> [B, out, H, W].

    Args:
        channels, out: of the input and the output.
        kernel: side of both.
        rate: dilation of the second. Yu and Koltun, 2016, arXiv:1511.07122.
        residual: add the input, through a 1x1 convolution where the channels differ. He et al., 2016, arXiv:1512.03385.
        attention: at the end.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        kernel: int = 3,
        rate: int = 1,
        residual: bool = False,
        attention: Attention = "none",
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, kernel, padding=rate * (kernel // 2), dilation=rate, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.attention = nn.Sequential(*attention_layers(attention, out))
        self.shortcut: nn.Module | None = None
        if residual:
            self.shortcut = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(features)))
        out = self.norm2(self.conv2(out))
        if self.shortcut is not None:
            out = out + self.shortcut(features)
        return self.attention(F.relu(out))


class UpBlock(nn.Module):
    """A level of the decoder: coarse features are doubled in size, joined with those of the encoder and convolved.

    A 1x1 convolution reduces the channels of the coarse features before they are interpolated. The other order would give
    the same numbers for four times the work.

    Args:
        coarse, fine: channels of both inputs; the output has as many as the fine one.
        gate: pass the fine features through an `AttentionGate`.
        kernel, residual, attention: of the convolutions.
    """

    def __init__(self, coarse: int, fine: int, gate: bool, kernel: int, residual: bool, attention: Attention) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(coarse, fine, 1)
        self.gate = AttentionGate(fine, coarse) if gate else None
        self.convs = DoubleConv(2 * fine, fine, kernel, residual=residual, attention=attention)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """[B, coarse, H, W] and [B, fine, 2 H, 2 W] -> [B, fine, 2 H, 2 W]."""
        if self.gate is not None:
            fine = self.gate(fine, coarse)
        upper = F.interpolate(self.narrow(coarse), scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.convs(torch.cat([fine, upper], 1))


class Encoder(nn.Module):
    """Levels of convolutions, each half as large as the one before: [B, C, H, W] -> a list of features, fine to coarse."""

    def __init__(
        self,
        channels: int,
        widths: tuple[int, ...],
        kernel: int,
        rates: tuple[int, ...],
        residual: bool,
        attention: Attention,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            DoubleConv(before, out, kernel, rate, residual, attention)
            for before, out, rate in zip((channels, *widths[:-1]), widths, rates, strict=True)
        )

    def forward(self, features: Tensor) -> list[Tensor]:
        levels: list[Tensor] = []
        for block in self.blocks:
            levels.append(block(F.max_pool2d(levels[-1], 2) if levels else features))
        return levels


class Decoder(nn.Module):
    """A list of features, fine to coarse -> [B, widths[0], H, W]."""

    def __init__(self, widths: tuple[int, ...], gates: bool, kernel: int, residual: bool, attention: Attention) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            UpBlock(coarse, fine, gates, kernel, residual, attention)
            for coarse, fine in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )

    def forward(self, levels: list[Tensor]) -> Tensor:
        features = levels[-1]
        for block, fine in zip(self.blocks, levels[-2::-1], strict=True):
            features = block(features, fine)
        return features


class UNetBody(nn.Module):
    """An encoder, a bottleneck and a decoder: float [B, C, H, W] -> features [B, widths[0], H, W].

    Sides are multiples of ``2 ** (len(widths) - 1)``.

    Args:
        channels: of the input.
        widths: channels of each level, fine to coarse.
        kernel: side of the convolutions.
        rates: dilation of the second convolution of each level of the encoder; None: 1 everywhere.
        gates: an `AttentionGate` on each of the encoder's levels.
        residual, attention: of `DoubleConv`.
        bottleneck: applied to the coarsest features, whose shape it keeps.
    """

    def __init__(
        self,
        channels: int,
        widths: tuple[int, ...],
        *,
        kernel: int = 3,
        rates: tuple[int, ...] | None = None,
        gates: bool = False,
        residual: bool = False,
        attention: Attention = "none",
        bottleneck: nn.Module | None = None,
    ) -> None:
        super().__init__()
        rates = rates or (1,) * len(widths)
        self.encoder = Encoder(channels, widths, kernel, rates, residual, attention)
        self.bottleneck = bottleneck or nn.Identity()
        self.decoder = Decoder(widths, gates, kernel, residual, attention)

    def forward(self, features: Tensor) -> Tensor:
        levels = self.encoder(features)
        return self.decoder([*levels[:-1], self.bottleneck(levels[-1])])


class UNet(Segmenter):
    """U-Net with batch norm and padded convolutions, so that logits are as large as the image. Ronneberger et al., 2015,
    "U-Net: Convolutional Networks for Biomedical Image Segmentation", arXiv:1505.04597.

    Args:
        channels, classes: of the input and the output.
        size: (height, width) of the images; any, since they are padded.
        widths: channels of each level, fine to coarse; each has half the sides of the one before. The paper's are 64 to
            1024 on five levels.
        patch: if above 1, each square of patch x patch pixels becomes the channels of one place first.
        standardize: bring each image to zero mean and unit variance first.
        gates: attention gates on the encoder features that the decoder uses, as in `attention-unet`.
        residual: shortcuts around each pair of convolutions.
        attention: at the end of each pair.
        dropout: chance that a channel of the coarsest features is left out.
        refine: steps of a cellular automaton on the logits; 0: none.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        size: tuple[int, int],
        *,
        widths: tuple[Width, ...] = WIDTHS,
        patch: Patch = 1,
        standardize: bool = False,
        gates: bool = False,
        residual: bool = False,
        attention: Attention = "none",
        dropout: Chance = 0.0,
        refine: Steps = 0,
    ) -> None:
        if len(widths) < 2:
            raise RequestError("unet: give at least two levels in widths, such as [24, 48]")
        body = UNetBody(
            channels * patch**2,
            widths,
            gates=gates,
            residual=residual,
            attention=attention,
            bottleneck=nn.Dropout2d(dropout),
        )
        super().__init__(body, MaskHead(widths[0], classes, refine), 2 ** (len(widths) - 1), patch, standardize)


def attention_unet(
    channels: int,
    classes: int,
    size: tuple[int, int],
    *,
    widths: tuple[Width, ...] = WIDTHS,
    patch: Patch = 1,
    standardize: bool = False,
    residual: bool = False,
    attention: Attention = "none",
    dropout: Chance = 0.0,
    refine: Steps = 0,
) -> UNet:
    """U-Net whose coarse features gate the fine features of the encoder. Oktay et al., 2018, "Attention U-Net: Learning
    Where to Look for the Pancreas", arXiv:1804.03999.

    Args:
        channels, classes, size: as of `UNet`.
        widths, patch, standardize, residual, attention, dropout, refine: as of `UNet`.
    """
    return UNet(
        channels,
        classes,
        size,
        widths=widths,
        patch=patch,
        standardize=standardize,
        gates=True,
        residual=residual,
        attention=attention,
        dropout=dropout,
        refine=refine,
    )
