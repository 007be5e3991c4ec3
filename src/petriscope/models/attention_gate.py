"""A gate on the encoder features that a decoder uses."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class AttentionGate(nn.Module):
    """Multiplies fine features at each place by a gate computed from them and from coarser features. Oktay et al., 2018,
    arXiv:1804.03999: the additive gate, computed at the coarse size and interpolated.

    Args:
        fine: channels of the gated features; the gate uses half as many inside.
        coarse: channels of the coarse features, which have half the sides.
    """

    def __init__(self, fine: int, coarse: int) -> None:
        super().__init__()
        inner = max(fine // 2, 4)
        self.from_fine = nn.Conv2d(fine, inner, 2, stride=2, bias=False)
        self.from_coarse = nn.Conv2d(coarse, inner, 1)
        self.score = nn.Conv2d(inner, 1, 1)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """[B, fine, 2 H, 2 W] and [B, coarse, H, W] -> [B, fine, 2 H, 2 W]."""
        gate = self.score(F.relu(self.from_fine(fine) + self.from_coarse(coarse))).sigmoid()
        return fine * F.interpolate(gate, scale_factor=2.0, mode="bilinear", align_corners=False)
