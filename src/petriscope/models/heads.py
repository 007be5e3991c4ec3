"""Heads that replace the classifier of a backbone."""

from __future__ import annotations

from torch import Tensor, nn

from petriscope.models.attention import SE


class SEMLP(nn.Module):
    """Squeeze and excitation, global average pooling, dense layers with swish, batch norm and dropout, then the logits.

    Hu et al., 2018, arXiv:1709.01507; swish: Ramachandran et al., 2017, arXiv:1710.05941.

    Args:
        channels, classes: of the features, float [B, C, H, W], and of the logits, [B, K].
        hidden: units of each dense layer.
        dropout: after each of them.
    """

    def __init__(self, channels: int, classes: int, hidden: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        self.attention = SE(channels)
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(channels, width), nn.SiLU(), nn.BatchNorm1d(width), nn.Dropout(dropout)]
            channels = width
        self.dense = nn.Sequential(*layers)
        self.logits = nn.Linear(channels, classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.logits(self.dense(self.attention(features).mean((2, 3))))
