"""The order within a model: its layers, its repeated blocks, its head. What freezing counts by."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from torch import nn

# Where networks keep their repeated units: Petriscope's, MobileNet, ViT; ResNet; ConvNeXt; Swin; simple-cnn, VGG.
CONTAINER = re.compile(r"(.*\.)?(blocks|stages|layers|layer\d+|features)")


def ordered_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names and modules that have parameters of their own, in the order they were made, which is that of the forward.

    Most are leaves. Some networks keep a parameter beside their children (a class token, a layer scale): such a module
    is listed before them. What belongs to a layer is ``module.parameters(recurse=False)``, and every parameter of the
    model belongs to exactly one.
    """
    return [
        (name, module) for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))
    ]


def ordered_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names and modules of the repeated units between stem and head, in order.

    Where a network's layers lie in one flat sequence (simple-cnn, timm's VGG), a block is a convolution with what follows
    it: a slice of the sequence, named by its ends (``features.0-3``), which shares its layers with the model.
    A network without any known unit is taken layer by layer, the head left out.
    """
    inside: list[str] = []
    found: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in inside) or not CONTAINER.fullmatch(name):
            continue
        inside.append(name)
        found += _units(name, module)
    head = tuple(f"{name}." for name in head_of(model))
    return found or [(name, module) for name, module in ordered_layers(model) if not f"{name}.".startswith(head)]


def is_dense(model: nn.Module) -> bool:
    """Whether a model gives logits per pixel, [B, K, H, W], rather than per image, [B, K]."""
    return bool(getattr(model, "dense", False))


def head_of(model: nn.Module) -> list[str]:
    """The names of the modules that make the logits: timm's classifier, or Petriscope's ``head``."""
    get_classifier = getattr(model, "get_classifier", None)
    if get_classifier is None:
        return ["head"]
    heads = get_classifier()
    heads = heads if isinstance(heads, tuple | list) else [heads]
    return [name for name, module in model.named_modules() if any(module is each for each in heads)]


def _units(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """A container's blocks; a stage that holds blocks beside other things, such as a downsampling, gives its blocks."""
    if type(module) in (nn.Sequential, nn.ModuleList):
        if sum(isinstance(child, nn.Conv2d) for child in module.children()) > 1:
            yield from _slices(name, module)
            return
        children = dict(module.named_children())
        # DenseNet keeps its first convolution and norms in one sequence with its blocks.
        compounds = {key: child for key, child in children.items() if any(map(_has_parameters, child.children()))}
        for key, child in (compounds or children).items():
            yield from _units(f"{name}.{key}", child)
    elif isinstance(inner := getattr(module, "blocks", None), nn.Module):
        yield from _units(f"{name}.blocks", inner)
    elif _has_parameters(module):
        yield name, module


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _slices(name: str, sequence: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    children = list(sequence.children())
    starts = [i for i, child in enumerate(children) if isinstance(child, nn.Conv2d)]
    for start, end in pairwise([*starts, len(children)]):
        yield f"{name}.{start}-{end - 1}", nn.Sequential(*children[start:end])
