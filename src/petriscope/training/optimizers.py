"""Optimizers by name. Weight decay applies to weights with at least two dimensions, not to biases and norms."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from petriscope.core.registry import Registry
from petriscope.models.backbones import import_timm
from petriscope.models.layers import head_of

OPTIMIZERS = Registry(
    "optimizer",
    {name: f"petriscope.training.optimizers:{name}" for name in ("adam", "adamw", "nadam", "sgd", "lion", "muon")},
)

Rate = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trainable = [p for p in model.parameters() if p.requires_grad]
    # A layer norm over channels and space has weights with three dimensions.
    norms = {id(p) for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
    plain = [p for p in trainable if p.ndim < 2 or id(p) in norms]
    decayed = [p for p in trainable if p.ndim >= 2 and id(p) not in norms]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def adam(
    model: nn.Module, *, lr: Rate = 1e-3, weight_decay: Decay = 0.0, betas: tuple[Beta, Beta] = (0.9, 0.999)
) -> Optimizer:
    """Adam; weight decay is the gradient of an L2 penalty. Kingma and Ba, 2015, arXiv:1412.6980."""
    return torch.optim.Adam(parameter_groups(model, weight_decay), lr=lr, betas=betas, fused=_fused(model))


def adamw(
    model: nn.Module, *, lr: Rate = 1e-3, weight_decay: Decay = 0.01, betas: tuple[Beta, Beta] = (0.9, 0.999)
) -> Optimizer:
    """Adam with decoupled weight decay. Loshchilov and Hutter, 2019, arXiv:1711.05101."""
    return torch.optim.AdamW(parameter_groups(model, weight_decay), lr=lr, betas=betas, fused=_fused(model))


def nadam(
    model: nn.Module, *, lr: Rate = 1e-3, weight_decay: Decay = 0.0, betas: tuple[Beta, Beta] = (0.9, 0.999)
) -> Optimizer:
    """Adam with Nesterov momentum and decoupled weight decay. Dozat, 2016."""
    groups = parameter_groups(model, weight_decay)
    return torch.optim.NAdam(groups, lr=lr, betas=betas, decoupled_weight_decay=True)


def sgd(
    model: nn.Module, *, lr: Rate = 0.05, momentum: Beta = 0.9, nesterov: bool = False, weight_decay: Decay = 0.0
) -> Optimizer:
    """Stochastic gradient descent with momentum; weight decay is the gradient of an L2 penalty."""
    groups, fused = parameter_groups(model, weight_decay), _fused(model)
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0, fused=fused)
    for weight in (weight for group in groups for weight in group["params"] if momentum):
        # torch's fused step fails where some weights have a momentum and others, trained from now on, have none yet.
        optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight, requires_grad=False)
    return optimizer


def lion(
    model: nn.Module, *, lr: Rate = 1e-4, weight_decay: Decay = 0.0, betas: tuple[Beta, Beta] = (0.9, 0.99)
) -> Optimizer:
    """Lion: the sign of an interpolated momentum. It needs a third to a tenth of AdamW's learning rate, and three to ten
    times its weight decay. From timm. Chen et al., 2023, arXiv:2302.06675."""
    import_timm()
    from timm.optim import Lion

    return Lion(parameter_groups(model, weight_decay), lr=lr, betas=betas)


def muon(
    model: nn.Module, *, lr: Rate = 2e-3, weight_decay: Decay = 0.0, momentum: Beta = 0.95, nesterov: bool = True
) -> Optimizer:
    """Muon: momentum made orthogonal by Newton-Schulz steps, for matrices and for convolution kernels seen as matrices;
    AdamW for biases, norms and the head. From timm, with steps scaled to the size of AdamW's. Jordan et al., 2024, "Muon:
    An optimizer for hidden layers"."""
    import_timm()
    from timm.optim import Muon

    head = {id(p) for name in head_of(model) for p in model.get_submodule(name).parameters()}
    groups = []
    for group in parameter_groups(model, weight_decay):
        no_matrices = any(p.ndim < 2 for p in group["params"])
        for in_head in (False, True):
            chosen = [p for p in group["params"] if (id(p) in head) == in_head]
            groups.append({**group, "params": chosen, "use_fallback": in_head or no_matrices})
    return Muon([group for group in groups if group["params"]], lr=lr, momentum=momentum, nesterov=nesterov)


def _fused(model: nn.Module) -> bool:
    return next(model.parameters()).device.type in ("cpu", "cuda")
