"""ResNet-18 from timm, with a stem for small pictures."""

from __future__ import annotations

from typing import Literal

from torch import nn

from petriscope.models.backbones import import_timm


def resnet18(
    channels: int, classes: int, size: tuple[int, int], *, stem: Literal["small", "imagenet"] = "small"
) -> nn.Module:
    """ResNet-18. He et al., 2016, "Deep Residual Learning for Image Recognition", arXiv:1512.03385.

    Args:
        channels, classes: of the input and the output.
        size: (height, width); any, the network pools globally.
        stem: ``small``: a 3x3 convolution of stride 1 and no pooling, as the paper does for CIFAR; ``imagenet``: 7x7
            of stride 2 and max pooling, which leaves little of pictures under 64 pixels.
    """
    model: nn.Module = import_timm().create_model("resnet18", num_classes=classes, in_chans=channels)
    if stem == "small":
        model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    return model
