"""Averages of the weights: running ones, and those of the last epochs."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn


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


class SWA:
    """A second model, the mean of the first one's weights at the ends of the last epochs. Izmailov et al., 2018,
    arXiv:1803.05407. Wants a rate that stays high: a constant one, or a cosine that ends above 0.

    Args:
        model: the model in training; ``self.model`` is the averaged copy, in eval mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def add(self, model: nn.Module, before: int, inputs: Iterable[Tensor], part: str = "") -> None:
        """Take an epoch's weights in.

        Args:
            model: whose weights; what of it is in evaluation mode (frozen) keeps its statistics.
            before: how many were taken in so far.
            inputs: normalized batches, from which the statistics of batch norm are taken anew: the averaged weights have
                others than any of the models they are the mean of.
            part: the module that ``inputs`` are for; the whole model if empty.
        """
        for ours, theirs in zip(_tensors(self.model), _tensors(model), strict=True):
            if ours.is_floating_point():
                ours.lerp_(theirs, 1 / (before + 1))
            else:
                ours.copy_(theirs)
        pairs = zip(self.model.modules(), model.modules(), strict=True)
        norms = [
            ours for ours, theirs in pairs if theirs.training and isinstance(getattr(ours, "momentum", None), float)
        ]
        kept = [norm.momentum for norm in norms]
        for norm in norms:
            norm.train()
        for number, images in enumerate(inputs if norms else ()):
            for norm in norms:
                norm.momentum = 1 / (number + 1)  # type: ignore[assignment]
            self.model.get_submodule(part)(images)
        for norm, momentum in zip(norms, kept, strict=True):
            norm.momentum = momentum
            norm.eval()


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
