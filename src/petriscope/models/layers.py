"""What a model is made of: its layers and repeated blocks in order, its head, and what its modules compute."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from torch import nn

# Names of the containers of repeated units: in Petriscope's, MobileNet, ViT; ConvNeXt; Swin; ResNet; simple-cnn, VGG.
CONTAINER = re.compile(r"(.*\.)?(blocks|stages|layers|layer\d+|features)")


def ordered_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names and modules that have parameters of their own, in the order they were made, which is that of the forward pass.

    Most are leaves. Some modules have parameters beside their children (a class token, a layer scale); such a module is
    listed before its children. The parameters of a layer are ``module.parameters(recurse=False)``, and every parameter of
    the model belongs to exactly one layer.
    """
    return [
        (name, module) for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))
    ]


def ordered_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names and modules of the repeated units between stem and head, in order.

    If the layers are one flat sequence (simple-cnn, timm's VGG), a block is a convolution and the layers up to the next
    one: a slice of the sequence, named by its ends (``features.0-3``), which shares its layers with the model. A network
    without any known container is taken layer by layer, without the head.
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
    """The names of the modules that make the logits: what timm's ``get_classifier`` gives, else the child ``head``.

    Mostly one. Some networks of timm's have two (distilled transformers), and a model may have none.
    """
    get_classifier = getattr(model, "get_classifier", None)
    if get_classifier is None:
        return [name for name, _ in model.named_children() if name == "head"]
    heads = get_classifier()
    heads = heads if isinstance(heads, tuple | list) else [heads]
    return [name for name, module in model.named_modules() if any(module is each for each in heads)]


def only_head_of(model: nn.Module) -> str | None:
    """The name of the one module that makes the logits; None if there are several, or none."""
    heads = head_of(model)
    return heads[0] if len(heads) == 1 else None


def last_linear(model: nn.Module) -> nn.Linear | None:
    """The last linear layer in the order in which layers were made. Its input are the features that logits are made of
    when a head has several layers. None for a model without linear layers."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return layers[-1] if layers else None


@contextmanager
def watching(modules: Iterable[nn.Module], note: Callable[[nn.Module, Any, Any], Any]) -> Iterator[None]:
    """Within, ``note(module, inputs, output)`` is called whenever one of the modules has run.

    Args:
        modules: to watch.
        note: is given the positional inputs as a tuple. What it returns, unless None, replaces the output.
    """
    handles = [module.register_forward_hook(note) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _units(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The blocks of a container; of a stage with other children too, such as a downsampling, only its blocks."""
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
