"""Class activation maps: the last feature maps of a convolutional network, weighed by what they do for a class.

Of a model of masks, the maps are the coarsest, at the bottleneck between encoder and decoder: the last ones say where the
class is, which the mask says already, and not what that rests on.
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

# A map of 3x3 places cannot say where in a small image; one layer earlier, before the last pooling, it can.
LEAST = 4
Least = Annotated[int, Field(ge=2)]


def grad_cam(model: nn.Module, images: Tensor, question: Question, *, least: Least = LEAST) -> Tensor:
    """Feature maps, each weighed by its mean gradient. Selvaraju et al., 2017, arXiv:1610.02391; of masks, Vinogradova,
    Dibrov and Myers, 2020, arXiv:2002.11434.

    Args:
        model: in evaluation mode.
        images: normalized float32 [B, C, H, W].
        question: the class of each image, and of masks the region.
        least: places that the shorter side of the layer's maps has at least, where a layer has so many; not looked at
            where there is a bottleneck.

    Returns:
        float32 [B, h, w].
    """
    maps, gradient = maps_and_gradient(model, images, question, least)
    return (maps * gradient.mean((2, 3), keepdim=True)).sum(1)


def grad_cam_plus_plus(model: nn.Module, images: Tensor, question: Question, *, least: Least = LEAST) -> Tensor:
    """Feature maps, weighed by their positive gradients, places where a map is alone more. Chattopadhyay et al., 2018,
    arXiv:1710.11063, with the exponential of the logit as the score; see `grad_cam` for the arguments."""
    maps, gradient = maps_and_gradient(model, images, question, least)
    square = gradient.square()
    below = 2 * square + maps.sum((2, 3), keepdim=True) * square * gradient
    share = torch.where(below != 0, square / torch.where(below != 0, below, torch.ones_like(below)), 0.0)
    return (maps * (share * gradient.clamp_min(0)).sum((2, 3), keepdim=True)).sum(1)


def hires_cam(model: nn.Module, images: Tensor, question: Question, *, least: Least = LEAST) -> Tensor:
    """Feature maps times their gradients, place by place. Draelos and Carin, 2020, arXiv:2011.08891; of masks, Rheude et
    al., 2024, arXiv:2409.20287.

    Equal to Grad-CAM where the network averages its last maps; where it reads each place by weights of its own
    (a fully connected layer, a maximum), Grad-CAM's mean gradient blurs what this keeps. See `grad_cam` for the arguments.
    """
    maps, gradient = maps_and_gradient(model, images, question, least)
    return (maps * gradient).sum(1)


def covered(model: nn.Module, height: int, width: int) -> tuple[int, int]:
    """The sides that feature maps cover: the image's, and what a model of masks pads it to below and to the right."""
    multiple = int(getattr(model, "multiple", 1))
    return height + -height % multiple, width + -width % multiple


def has_feature_maps(model: nn.Module, images: Tensor) -> bool:
    return bool(_spatial_layers(model, images))


def maps_and_gradient(model: nn.Module, images: Tensor, question: Question, least: int) -> tuple[Tensor, Tensor]:
    """The last maps with at least ``least`` places per side, and the gradient of the classes' scores: [B, C, h, w] each.

    A network equivariant to turns (d4-resnet) needs nothing of its own: each version of a feature lies in the frame of the
    image, the gradients weigh all of them, and the map turns with the image.
    """
    layer, last = feature_layer(model, images[:1], least)
    seen: list[Tensor] = []

    def cut(module: nn.Module, inputs: Any, out: Any) -> Any:
        # The graph starts here; a copy goes on, because layers that work in place would change what is kept.
        maps = out if isinstance(out, Tensor) else out[-1]
        seen[:] = [maps.detach().requires_grad_()]
        return seen[0].clone() if isinstance(out, Tensor) else [*out[:-1], seen[0].clone()]

    with watching([layer], cut):
        (gradient,) = torch.autograd.grad(question.score(model(images)).sum(), seen)
    maps = seen[0].detach()
    return (maps.permute(0, 3, 1, 2), gradient.permute(0, 3, 1, 2)) if last else (maps, gradient)


def feature_layer(model: nn.Module, images: Tensor, least: int) -> tuple[nn.Module, bool]:
    """The last layer whose maps have at least ``least`` places per side, else the one that has most; and whether its channels
    come last. A model's own ``bottleneck``, where it has one.

    Raises:
        RequestError: the network has no layer with maps.
    """
    found = _spatial_layers(model, images)
    if not found:
        raise RequestError(
            "this network has no feature maps of two places or more, which class activation maps are made of; use occlusion, "
            "or attention-gradient for a transformer"
        )
    most = max(side for _, side, _ in found)
    layer, _, last = next(entry for entry in reversed(found) if entry[1] >= min(least, most))
    return layer, last


def _spatial_layers(model: nn.Module, images: Tensor) -> list[tuple[nn.Module, int, bool]]:
    """Layers that give maps, in the order they end, with the shorter side of the maps and whether channels come last.

    Only layers that all of what follows passes through are taken: the model's children and, of sequences, theirs; not
    the inside of a residual block. Of a model with a ``bottleneck``, that alone.
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
    """Maps have the proportions of the image; the order of their axes is told by that."""
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
