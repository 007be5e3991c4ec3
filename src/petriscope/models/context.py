"""Context for convolutional networks: of the whole image, and at several scales."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GlobalContext(nn.Module):
    """Adds a summary of the image to every place: a mean weighted by attention over places, passed through two layers
    with a quarter of the channels in between. Cao et al., 2019, "GCNet: Non-local Networks Meet Squeeze-Excitation
    Networks and Beyond", arXiv:1904.11492.

    Args:
        channels: of the features, [B, C, H, W] in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // 4, 8)
        self.score = nn.Conv2d(channels, 1, 1)
        self.squeeze = nn.Linear(channels, inner)
        self.norm = nn.LayerNorm(inner)
        self.excite = nn.Linear(inner, channels)
        for parameter in self.excite.parameters():  # it starts as the identity, as in the paper
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor) -> Tensor:
        shares = self.score(features).flatten(2).softmax(2)
        summary = (features.flatten(2) @ shares.transpose(1, 2)).squeeze(2)
        change = self.excite(F.relu(self.norm(self.squeeze(summary))))
        return features + change[:, :, None, None]


class DilatedInception(nn.Module):
    """Parallel 3x3 convolutions with different dilation rates on a projection to fewer channels, joined by a 1x1
    convolution, with a shortcut.

    Several sizes at once: Szegedy et al., 2015, arXiv:1409.4842; by dilation: Chen et al., 2017, "Rethinking Atrous
    Convolution", arXiv:1706.05587.

    Args:
        channels: of the features, [B, C, H, W] in and out.
        rates: of the branches.
    """

    def __init__(self, channels: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        inner = max(channels // len(rates), 1)
        self.narrow = nn.Conv2d(channels, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.branches = nn.ModuleList(
            nn.Conv2d(inner, inner, 3, padding=rate, dilation=rate, bias=False) for rate in rates
        )
        self.norm2 = nn.BatchNorm2d(inner * len(rates))
        self.join = nn.Conv2d(inner * len(rates), channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(channels)

    def forward(self, features: Tensor) -> Tensor:
        narrow = F.relu(self.norm1(self.narrow(features)))
        seen = torch.cat([branch(narrow) for branch in self.branches], 1)
        return F.relu(features + self.norm3(self.join(F.relu(self.norm2(seen)))))
