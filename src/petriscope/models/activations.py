"""The activation functions that a model's `activation` option names."""

from __future__ import annotations

from typing import Literal

from torch import nn

Activation = Literal["relu", "gelu", "silu", "mish"]


def activation(name: Activation) -> nn.Module:
    """Make one: float [...] -> float [...].

    ReLU; GELU (Hendrycks and Gimpel, 2016, arXiv:1606.08415); SiLU, also called swish (Ramachandran et al., 2017,
    arXiv:1710.05941); Mish (Misra, 2019, arXiv:1908.08681).
    """
    return {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "mish": nn.Mish}[name]()
