"""The norm layers that a model's `norm` option names."""

from __future__ import annotations

from typing import Literal

from torch import nn

from petriscope.core.errors import RequestError

Norm = Literal["batch", "group"]
GROUP = 8  # channels per group, as near as the number of channels allows


def norm(name: Norm, channels: int) -> nn.BatchNorm2d | nn.GroupNorm:
    """Make one: float [B, channels, H, W] -> the same.

    Batch norm (Ioffe and Szegedy, 2015, arXiv:1502.03167) predicts with statistics of the training images, which those of
    another microscope do not have. Group norm (Wu and He, 2018, arXiv:1803.08494) takes its statistics from each image.
    """
    return nn.BatchNorm2d(channels) if name == "batch" else _group(channels)


def with_norm(model: nn.Module, name: Norm) -> None:
    """Replace the batch norms of a model, in place, by norms of the given name, with their scales and shifts.

    Raises:
        RequestError: it has norms of another kind that predict with statistics of the training images.
    """
    if name == "batch":
        return
    for parent in [*model.modules()]:
        for key, child in [*parent.named_children()]:
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                made = norm(name, child.num_features)
                if child.affine:
                    made.load_state_dict({each: getattr(child, each) for each in ("weight", "bias")})
                # timm has layers that are a norm, dropout and an activation.
                rest = [layer for each in ("drop", "act") if (layer := getattr(child, each, None)) is not None]
                setattr(parent, key, nn.Sequential(made, *rest) if rest else made)
    if left := next((key for key in model.state_dict() if key.endswith("running_var")), None):
        where = left.rpartition(".")[0]
        kind = type(model.get_submodule(where)).__name__
        raise RequestError(
            f"model.norm={name}: {where} is a {kind}, which predicts with statistics of the training images and cannot be "
            "replaced; set model.norm=batch"
        )


def _group(channels: int) -> nn.GroupNorm:
    groups = max(1, channels // GROUP)
    return nn.GroupNorm(next(count for count in range(groups, 0, -1) if channels % count == 0), channels)
