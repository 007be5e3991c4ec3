"""The cost of a network: parameters and multiply-adds."""

from __future__ import annotations

import torch
from torch import nn


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
