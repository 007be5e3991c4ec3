"""Two U-Nets in parallel: one for large structures, one for detail."""

from __future__ import annotations

from typing import Annotated, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from petriscope.core.errors import RequestError
from petriscope.models.attention import Attention, attention_layers
from petriscope.models.context import DilatedInception, GlobalContext
from petriscope.models.mask_head import MaskHead
from petriscope.models.segmenter import Segmenter
from petriscope.models.unet import Chance, Patch, Steps, UNetBody, Width

Rate = Annotated[int, Field(ge=1, le=16)]
Kernel = Literal[3, 5, 7]


class DualBody(nn.Module):
    """A macro and a micro U-Net on the same image, their features joined by a 1x1 convolution.

    Args:
        macro, micro: [B, C, H, W] -> [B, their width, H, W].
        channels, out: of both features together, and of the joined ones.
        attention: on the joined features.
    """

    def __init__(self, macro: nn.Module, micro: nn.Module, channels: int, out: int, attention: Attention) -> None:
        super().__init__()
        self.macro, self.micro = macro, micro
        self.fuse = nn.Sequential(
            nn.Conv2d(channels, out, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            *attention_layers(attention, out),
        )

    @property
    def bottleneck(self) -> nn.Module:
        """That of the macro U-Net; the features of the micro U-Net do not pass through it."""
        return cast(nn.Module, self.macro.bottleneck)

    def forward(self, images: Tensor) -> Tensor:
        return self.fuse(torch.cat([self.macro(images), self.micro(images)], 1))


class DualUNet(Segmenter):
    """A macro U-Net with a large field of view (dilated convolutions, several scales at its bottleneck, attention gates)
    and a micro U-Net for detail (fewer and larger filters, a summary of the whole image), joined at the end. Every part can
    be switched off.

    Args:
        channels, classes: of the input and the output.
        size: (height, width) of the images; any, since they are padded.
        branches: both, or one of them alone.
        widths: channels of the macro U-Net's levels, fine to coarse.
        rates: dilations in its encoder, one for each level except the coarsest, fine to coarse; empty: none.
        inception: parallel dilated convolutions at its bottleneck.
        gates: attention gates on the encoder features that its decoder uses.
        micro_widths: channels of the micro U-Net's levels.
        micro_kernel: side of its filters.
        context: the micro U-Net's summary of the whole image.
        patch: if above 1, each square of patch x patch pixels becomes the channels of one place first.
        standardize: bring each image to zero mean and unit variance first.
        residual: shortcuts around each pair of convolutions.
        attention: at the end of each pair, and after the joining.
        dropout: chance that a channel of the macro U-Net's coarsest features is left out.
        refine: steps of a cellular automaton on the logits; 0: none.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        size: tuple[int, int],
        *,
        branches: Literal["both", "macro", "micro"] = "both",
        widths: tuple[Width, ...] = (16, 32, 64, 128),
        rates: tuple[Rate, ...] = (2, 4, 8),
        inception: bool = True,
        gates: bool = True,
        micro_widths: tuple[Width, ...] = (12, 24),
        micro_kernel: Kernel = 5,
        context: bool = True,
        patch: Patch = 1,
        standardize: bool = False,
        residual: bool = False,
        attention: Attention = "se",
        dropout: Chance = 0.0,
        refine: Steps = 0,
    ) -> None:
        if min(len(widths), len(micro_widths)) < 2:
            raise RequestError("dual-unet: give at least two levels each in widths and micro_widths, such as [16, 32]")
        if rates and len(rates) != len(widths) - 1:
            raise RequestError(
                f"dual-unet: {len(rates)} rates for {len(widths)} levels; give one for each level except the last, or none"
            )
        inputs = channels * patch**2
        macro = UNetBody(
            inputs,
            widths,
            rates=(*rates, 1) if rates else None,
            gates=gates,
            residual=residual,
            attention=attention,
            bottleneck=nn.Sequential(
                nn.Dropout2d(dropout), *([DilatedInception(widths[-1], (1, 2, 4, 8))] if inception else [])
            ),
        )
        micro = UNetBody(
            inputs,
            micro_widths,
            kernel=micro_kernel,
            residual=residual,
            attention=attention,
            bottleneck=GlobalContext(micro_widths[-1]) if context else None,
        )
        body: nn.Module
        if branches == "both":
            body, width = DualBody(macro, micro, widths[0] + micro_widths[0], widths[0], attention), widths[0]
            levels = max(len(widths), len(micro_widths))
        elif branches == "macro":
            body, width, levels = macro, widths[0], len(widths)
        else:
            body, width, levels = micro, micro_widths[0], len(micro_widths)
        super().__init__(body, MaskHead(width, classes, refine), 2 ** (levels - 1), patch, standardize)
