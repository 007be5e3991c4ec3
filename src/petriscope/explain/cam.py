"""Class activation maps: the last feature maps of a convolutional network, weighted by their effect on a class.

For segmentation, the feature maps are the coarsest ones, at the bottleneck between encoder and decoder. The last feature
maps would show where the class is predicted, as the mask does, and not what the prediction depends on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from petriscope.core.errors import RequestError
from petriscope.explain.question import Question
from petriscope.models.layers import watching

# Positions per side of the feature maps. Maps of 3x3 are too coarse; those before the last pooling are used instead.
LEAST = 4
Least = Annotated[int, Field(ge=2)]


def grad_cam(model: nn.Module, images: Tensor, question: Question, *, least: Least = LEAST) -> Tensor:
    """Grad-CAM: feature maps, each weighted by its mean gradient. Selvaraju et al., 2017, arXiv:1610.02391; for
    segmentation, Vinogradova, Dibrov and Myers, 2020, arXiv:2002.11434.

    Args:
        model: in evaluation mode.
        images: normalized float32 [B, C, H, W].
        question: the class of each image, and for segmentation the region.
        least: smallest length of the shorter side of the feature maps, if a layer has such maps; not used for models with
            a bottleneck.

    Returns:
        float32 [B, h, w].
    """
    maps, gradient = maps_and_gradient(model, images, question, least)
    return (maps * gradient.mean((2, 3), keepdim=True)).sum(1)


def grad_cam_plus_plus(model: nn.Module, images: Tensor, question: Question, *, least: Least = LEAST) -> Tensor:
    """Grad-CAM++: feature maps, weighted by their positive gradients, with more weight on small regions. Chattopadhyay et
    al., 2018, arXiv:1710.11063, with the exponential of the logit as the score. See `grad_cam` for the arguments."""
    maps, gradient = maps_and_gradient(model, images, question, least)
    square = gradient.square()
    below = 2 * square + maps.sum((2, 3), keepdim=True) * square * gradient
    share = torch.where(below != 0, square / torch.where(below != 0, below, torch.ones_like(below)), 0.0)
    return (maps * (share * gradient.clamp_min(0)).sum((2, 3), keepdim=True)).sum(1)


def hires_cam(model: nn.Module, images: Tensor, question: Question, *, least: Least = LEAST) -> Tensor:
    """HiResCAM: feature maps times their gradients, element by element. Draelos and Carin, 2020, arXiv:2011.08891; for
    segmentation, Rheude et al., 2024, arXiv:2409.20287.

    It is equal to Grad-CAM if the network averages its last feature maps. If the positions have different weights (a fully
    connected layer, a maximum), the mean gradient of Grad-CAM loses detail that HiResCAM keeps. See `grad_cam` for the
    arguments.
    """
    maps, gradient = maps_and_gradient(model, images, question, least)
    return (maps * gradient).sum(1)


def covered(model: nn.Module, height: int, width: int) -> tuple[int, int]:
    """The height and width that feature maps cover: those of the image, padded at the bottom and right by segmenters."""
    multiple = int(getattr(model, "multiple", 1))
    return height + -height % multiple, width + -width % multiple


def has_feature_maps(model: nn.Module, images: Tensor) -> bool:
    return bool(_spatial_layers(model, images))


def maps_and_gradient(model: nn.Module, images: Tensor, question: Question, least: int) -> tuple[Tensor, Tensor]:
    """The last feature maps with at least ``least`` positions per side, and the gradients of the class scores with respect
    to them, [B, C, h, w] each.

    Networks that are equivariant to rotations (d4-resnet) need no special case: all versions of a feature are in the frame
    of the image and are weighted by their gradients, so the map rotates with the image.
    """
    layer, last = feature_layer(model, images[:1], least)
    seen: list[Tensor] = []

    def cut(module: nn.Module, inputs: Any, out: Any) -> Any:
        # The graph starts here. A clone is passed on, because in-place layers would change the maps that are kept.
        maps = out if isinstance(out, Tensor) else out[-1]
        seen[:] = [maps.detach().requires_grad_()]
        return seen[0].clone() if isinstance(out, Tensor) else [*out[:-1], seen[0].clone()]

    with watching([layer], cut):
        (gradient,) = torch.autograd.grad(question.score(model(images)).sum(), seen)
    maps = seen[0].detach()
    return (maps.permute(0, 3, 1, 2), gradient.permute(0, 3, 1, 2)) if last else (maps, gradient)


def feature_layer(model: nn.Module, images: Tensor, least: int) -> tuple[nn.Module, bool]:
    """The last layer whose feature maps have at least ``least`` positions per side, else the one with the most; and whether
    its channels come last. If the model has a ``bottleneck``, that layer.

    Raises:
        RequestError: the network has no feature maps.
    """
    found = _spatial_layers(model, images)
    if not found:
        raise RequestError(
            "class activation maps need feature maps of at least two positions per side, which this network lacks; use "
            "occlusion, or attention-gradient for a transformer"
        )
    most = max(side for _, side, _ in found)
    layer, _, last = next(entry for entry in reversed(found) if entry[1] >= min(least, most))
    return layer, last


def _spatial_layers(model: nn.Module, images: Tensor) -> list[tuple[nn.Module, int, bool]]:
    """Layers with feature maps, in the order in which they finish, with the shorter side of the maps and whether channels
    come last.

    Only layers that everything later depends on count: the children of the model, and those of sequential containers, but
    not the layers inside of a residual block. For a model with a ``bottleneck``, only that.
    """
    bottleneck = getattr(model, "bottleneck", None)
    resized = getattr(model, "resize", None)  # to a square
    height, width = (resized, resized) if resized else covered(model, *images.shape[2:])
    ended: dict[nn.Module, tuple[int, bool]] = {}

    def note(module: nn.Module, inputs: Any, out: Any) -> None:
        ended.pop(module, None)
        found = _sides(out[-1] if module is bottleneck and isinstance(out, list | tuple) else out, height, width)
        if found is not None:
            ended[module] = found

    with watching(model.modules(), note), torch.no_grad():
        model(images)
    steps = set(_steps(model, ended)) if bottleneck is None else {bottleneck}
    return [(module, side, last) for module, (side, last) in ended.items() if module in steps]


def _sides(out: Any, height: int, width: int) -> tuple[int, bool] | None:
    """The shorter side of feature maps and whether channels come last; None if the output is not feature maps. Feature maps
    are recognized by the proportions of the image."""
    if not isinstance(out, Tensor) or out.ndim != 4:
        return None
    for last in (False, True):
        h, w = out.shape[1:3] if last else out.shape[2:]
        if min(h, w) >= 2 and abs(h * width - w * height) <= max(height, width):
            return min(h, w), last
    return None


def _steps(module: nn.Module, spatial: dict[nn.Module, tuple[int, bool]]) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.Sequential) or child not in spatial:
            yield from _steps(child, spatial)
        else:
            yield child
