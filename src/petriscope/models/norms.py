"""The norm layers that a model's `norm` option names."""

from __future__ import annotations

from typing import Literal

from torch import nn

Norm = Literal["batch", "group"]
GROUP = 8  # channels per group, as near as the number of channels allows


def norm(name: Norm, channels: int) -> nn.BatchNorm2d | nn.GroupNorm:
    """Make one: float [B, channels, H, W] -> the same.

    Batch norm (Ioffe and Szegedy, 2015, arXiv:1502.03167) predicts with statistics of the training images, which those of
    another microscope do not have. Group norm (Wu and He, 2018, arXiv:1803.08494) takes its statistics from each image.
    """
    return nn.BatchNorm2d(channels) if name == "batch" else _group(channels)


def with_norm(model: nn.Module, name: Norm) -> None:
    """Replace the batch norms of a model, in place, by norms of the given name, with their scales and shifts."""
    for parent in [*model.modules()] if name != "batch" else []:
        for key, child in [*parent.named_children()]:
            if isinstance(child, nn.BatchNorm2d):
                made = norm(name, child.num_features)
                made.load_state_dict(dict(child.named_parameters()))
                # timm has layers that are a norm, dropout and an activation.
                rest = [layer for each in ("drop", "act") if (layer := getattr(child, each, None)) is not None]
                setattr(parent, key, nn.Sequential(made, *rest) if rest else made)


def _group(channels: int) -> nn.GroupNorm:
    groups = max(1, channels // GROUP)
    return nn.GroupNorm(next(count for count in range(groups, 0, -1) if channels % count == 0), channels)
