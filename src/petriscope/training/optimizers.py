"""Optimizers by name. Weight decay falls on weights of two or more dimensions: not on biases, not on norms."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from petriscope.parts import Catalogue

OPTIMIZERS = Catalogue(
    "optimizer",
    {name: f"petriscope.training.optimizers:{name}" for name in ("adam", "adamw", "sgd")},
)

Rate = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trainable = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.ndim >= 2]
    plain = [p for p in trainable if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def adam(
    model: nn.Module, *, lr: Rate = 1e-3, weight_decay: Decay = 0.0, betas: tuple[Beta, Beta] = (0.9, 0.999)
) -> Optimizer:
    """Adam; weight decay is the L2 penalty's gradient. Kingma and Ba, 2015, arXiv:1412.6980."""
    return torch.optim.Adam(parameter_groups(model, weight_decay), lr=lr, betas=betas, fused=_fused(model))


def adamw(
    model: nn.Module, *, lr: Rate = 1e-3, weight_decay: Decay = 0.01, betas: tuple[Beta, Beta] = (0.9, 0.999)
) -> Optimizer:
    """Adam with weight decay apart from the gradient. Loshchilov and Hutter, 2019, arXiv:1711.05101."""
    return torch.optim.AdamW(parameter_groups(model, weight_decay), lr=lr, betas=betas, fused=_fused(model))


def sgd(
    model: nn.Module, *, lr: Rate = 0.05, momentum: Beta = 0.9, nesterov: bool = False, weight_decay: Decay = 0.0
) -> Optimizer:
    """Stochastic gradient descent with momentum; weight decay is the L2 penalty's gradient."""
    groups = parameter_groups(model, weight_decay)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0, fused=_fused(model))


def _fused(model: nn.Module) -> bool:
    return next(model.parameters()).device.type in ("cpu", "cuda")
