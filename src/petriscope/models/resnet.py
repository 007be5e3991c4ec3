"""ResNets from timm, with a stem for small images and attention in every block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import nn

from petriscope.core.errors import RequestError
from petriscope.models.attention import Attention, attention_layers
from petriscope.models.backbones import OPTIONS, Chance, Head, Side, Width, make_backbone
from petriscope.models.norms import Norm
from petriscope.models.weights import Weights

Stem = Literal["small", "imagenet"]


def _small_stem(network: Any) -> None:
    network.conv1 = nn.Conv2d(network.conv1.in_channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()


def _resnet(depth: int) -> Callable[..., nn.Module]:
    def resnet(
        channels: int,
        classes: int,
        size: tuple[int, int],
        *,
        stem: Stem = "small",
        attention: Attention = "none",
        weights: Weights = "none",
        norm: Norm = "batch",
        drop_rate: Chance = 0.0,
        drop_path_rate: Chance = 0.0,
        head: Head = "linear",
        hidden: tuple[Width, ...] = (256,),
        resize: Side | None = None,
    ) -> nn.Module:
        if weights == "pretrained" and stem == "small":
            raise RequestError(
                f"resnet{depth}: the pretrained weights are for the ImageNet stem; set model.stem=imagenet"
            )
        more: dict[str, Any] = {}
        if attention != "none":
            more["block_args"] = {"attn_layer": lambda channels, **_: attention_layers(attention, channels)[0]}
        return make_backbone(
            f"resnet{depth}",
            channels,
            classes,
            size,
            weights=weights,
            norm=norm,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            head=head,
            hidden=hidden,
            resize=resize,
            adapt=_small_stem if stem == "small" else lambda network: None,
            optional=lambda name: ".se." in name,
            **more,
        )

    resnet.__doc__ = f"""ResNet-{depth}. He et al., 2016, "Deep Residual Learning for Image Recognition", arXiv:1512.03385.

Args:
    channels, classes: of the input and the output.
    size: (height, width); any, the network pools globally.
    stem: ``small``: a 3x3 convolution of stride 1 and no pooling, as the paper does for CIFAR; ``imagenet``: 7x7 of stride 2
        and max pooling, which is too coarse for images under 64 pixels, and needed for pretrained weights.
    attention: at the end of each residual branch; freshly initialized if ``weights`` has none.
{OPTIONS}
"""
    return resnet


resnet18 = _resnet(18)
resnet34 = _resnet(34)
resnet50 = _resnet(50)
