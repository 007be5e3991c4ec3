"""Averages of the weights: an exponential moving average, and the mean over the last epochs.

`torch.optim.swa_utils.AveragedModel` is not used: its first update copies the weights where `EMA` already averages, and its
mean rounds differently from that of `SWA`, so trained weights would change. Its ``update_bn`` resets frozen layers too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class EMA:
    """An exponential moving average of the weights. Polyak and Juditsky, 1992; Tarvainen and Valpola, 2017,
    arXiv:1703.01780.

    Args:
        model: the model in training; ``self.model`` is the averaged copy, in eval mode.
        decay: the share of the average that is kept per step. In early steps (1 + t) / (10 + t) is used if it is smaller, so
            that the random first weights are soon forgotten.
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
        """Update the average after a step, counted from 0."""
        keep = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._average, self._current, 1 - keep)
        for ours, theirs in self._counters:
            ours.copy_(theirs)


class SWA:
    """The mean of the weights at the ends of the last epochs. Izmailov et al., 2018, arXiv:1803.05407.

    It works best with a learning rate that stays high: a constant one, or a cosine that ends above 0.

    Args:
        model: the model in training; ``self.model`` is the averaged copy, in eval mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def add(self, model: nn.Module, before: int, inputs: Iterable[Tensor], part: str = "") -> None:
        """Add the weights of an epoch to the mean.

        Args:
            model: the model with these weights; its modules in evaluation mode (frozen ones) keep their statistics.
            before: how many epochs were added before.
            inputs: normalized batches from which the batch norm statistics are recomputed, since those of the averaged
                weights differ from those of every model that went into the mean.
            part: name of the module that takes ``inputs``; empty: the whole model.
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
