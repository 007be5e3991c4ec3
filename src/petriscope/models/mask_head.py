"""From features to logits per pixel, and a cellular automaton that refines them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN_STATE = 8  # channels of a cell besides its logits
INNER = 32  # units of the rule
FIRE = 0.5  # chance that a place is updated in a step of training


class CellularAutomaton(nn.Module):
    """A small learned rule, applied several times at every place, that updates the place's state from its 3x3 neighborhood.

    The state has the logits and a few channels of memory, which start as a projection of the features. The rule sees the
    state and, per channel, two 3x3 filters of it; two 1x1 convolutions compute the update, which is 0 at first. In
    training, half of the places are updated in a step. Mordvintsev et al., 2020, "Growing Neural Cellular Automata",
    doi:10.23915/distill.00027.

    Args:
        channels: of the features.
        classes: K.
        steps: number of times the rule is applied; information travels one pixel per step.
    """

    def __init__(self, channels: int, classes: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        state = classes + HIDDEN_STATE
        self.memory = nn.Conv2d(channels, HIDDEN_STATE, 1)
        self.sense = nn.Conv2d(state, 2 * state, 3, padding=1, groups=state, bias=False)
        self.rule = nn.Conv2d(3 * state, INNER, 1)
        self.change = nn.Conv2d(INNER, state, 1)
        for parameter in self.change.parameters():
            nn.init.zeros_(parameter)

    def forward(self, logits: Tensor, features: Tensor) -> Tensor:
        """[B, K, H, W] and [B, C, H, W] -> logits [B, K, H, W]."""
        classes = logits.shape[1]
        state = torch.cat([logits, self.memory(features)], 1)
        for _ in range(self.steps):
            change = self.change(F.relu(self.rule(torch.cat([state, self.sense(state)], 1))))
            if self.training:
                acts = torch.rand_like(change[:, :1], dtype=torch.float32) < FIRE
                change = change * acts.to(change.dtype) / FIRE
            state = state + change
        return state[:, :classes]


class MaskHead(nn.Module):
    """A 1x1 convolution to logits; with ``steps``, a `CellularAutomaton` on them. [B, C, H, W] -> [B, K, H, W]."""

    def __init__(self, channels: int, classes: int, steps: int = 0) -> None:
        super().__init__()
        self.logits = nn.Conv2d(channels, classes, 1)
        self.refine = CellularAutomaton(channels, classes, steps) if steps else None

    def forward(self, features: Tensor) -> Tensor:
        logits = self.logits(features)
        return logits if self.refine is None else self.refine(logits, features)
