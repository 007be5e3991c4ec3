"""The cost of a network: parameters, multiply-adds and memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from petriscope.models.layers import watching


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def multiply_adds(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Multiply-adds of one forward pass of one image of ``shape`` (height, width, channels), attention included."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    height, width, channels = shape
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    # The counter does not know fused attention on a CPU, but it does know the products of the plain implementation.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, channels, height, width, device=device))
    model.train(training)
    return int(counter.get_total_flops() // 2)


@dataclass(frozen=True)
class Memory:
    """What a network takes, in bytes, with numbers in fp32.

    Args:
        weights: all parameters.
        trained: those that are trained.
        step: what a training step keeps of each image for the backward pass.
        prediction: the largest input and output of a layer, for each image.
    """

    weights: int
    trained: int
    step: int
    prediction: int


def memory(sketch: nn.Module, shape: tuple[int, int, int]) -> Memory:
    """Estimate the memory of a network without using any.

    Args:
        sketch: the network on the device ``meta``; parameters that do not require gradients are not trained.
        shape: (height, width, channels) of the images.

    Raises:
        RuntimeError, ValueError, NotImplementedError: it cannot take such images, or cannot run on that device.
    """
    height, width, channels = shape
    own = {each.untyped_storage()._cdata for each in (*sketch.parameters(), *sketch.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}  # by identity, because several tensors may share one
    largest = 0

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal largest
        largest = max(largest, sum(each.nbytes for each in (*inputs, output) if isinstance(each, Tensor)))

    leaves = [module for module in sketch.modules() if not any(True for _ in module.children())]
    images = torch.zeros(2, channels, height, width, device="meta")  # batch norm refuses a single one
    with watching(leaves, note), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        sketch(images)
    return Memory(
        weights=sum(each.nbytes for each in sketch.parameters()),
        trained=sum(each.nbytes for each in sketch.parameters() if each.requires_grad),
        step=sum(storage.nbytes() for key, storage in kept.items() if key not in own) // 2,
        prediction=largest // 2,
    )
