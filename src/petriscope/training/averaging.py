"""Exponential moving average of the weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class EMA:
    """A second model whose weights follow the first one's. Polyak and Juditsky, 1992; Tarvainen and Valpola, 2017,
    arXiv:1703.01780.

    Args:
        model: the model in training; ``self.model`` is the averaged copy, in eval mode.
        decay: the share kept a step. Early on, (1 + t) / (10 + t) where that is less, so that the first weights,
            which are random, are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._average = [t for t in _tensors(self.model) if t.is_floating_point()]
        self._current = [t for t in _tensors(model) if t.is_floating_point()]
        self._counters = [
            (ours, theirs)
            for ours, theirs in zip(_tensors(self.model), _tensors(model), strict=True)
            if not ours.is_floating_point()
        ]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the model after a step, counted from 0."""
        keep = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._average, self._current, 1 - keep)
        for ours, theirs in self._counters:
            ours.copy_(theirs)


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
