"""What a vision transformer attends to: its attention, multiplied through the layers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from petriscope.core.errors import RequestError
from petriscope.explain.question import Question
from petriscope.models.layers import watching


def attention_rollout(model: nn.Module, images: Tensor, question: Question) -> Tensor:
    """How much of each patch reaches the class token, by attention and shortcuts alone. Abnar and Zuidema, 2020,
    arXiv:2005.00928. The same for every class.

    Args:
        model: timm's vision transformer, in evaluation mode.
        images: normalized float32 [B, C, H, W].
        question: not looked at.

    Returns:
        float32 [B, h, w], one value per patch.

    Raises:
        RequestError: the network has no attention over the whole image.
    """
    with watched(model) as attentions, torch.no_grad():
        model(images)
    return _to_patches(model, images, rollout(_checked(attentions, len(images))))


def attention_gradient(model: nn.Module, images: Tensor, question: Question) -> Tensor:
    """As `attention_rollout`, each head's attention weighed by its gradient for the class, where that is positive.

    Chefer et al., 2021, "Generic Attention-model Explainability", arXiv:2103.15679, for self-attention.
    """
    with watched(model) as attentions:
        logits = model(images)
    layers = _checked(attentions, len(images))
    gradients = torch.autograd.grad(question.score(logits).sum(), layers)
    eye = torch.eye(layers[0].shape[-1], device=images.device)
    relevance = eye.expand(len(images), -1, -1)
    for attention, gradient in zip(layers, gradients, strict=True):
        relevance = relevance + (attention.detach() * gradient).clamp_min(0).mean(1) @ relevance
    return _to_patches(model, images, relevance - eye)


def rollout(attentions: list[Tensor]) -> Tensor:
    """Attention of the layers, [B, heads, N, N] each, first to last -> [B, N, N]: the share of each input token (columns) in
    each output token (rows). Rows sum to 1."""
    eye = torch.eye(attentions[0].shape[-1], device=attentions[0].device)
    total = eye.expand(len(attentions[0]), -1, -1)
    for attention in attentions:
        mixed = (attention.detach().mean(1) + eye) / 2
        total = mixed / mixed.sum(-1, keepdim=True) @ total
    return total


def sees_whole_image(model: nn.Module, images: Tensor) -> bool:
    """Whether every layer of attention is over all patches of the image, so that the layers can be multiplied."""
    if not _modules(model):
        return False
    with watched(model) as attentions, torch.no_grad():
        model(images)
    return _reason(attentions, len(images)) is None and _grid(model, images, attentions[0].shape[-1]) is not None


@contextmanager
def watched(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects each layer's attention, [B, heads, N, N], as the model runs. Fused attention never forms it, and is off
    within."""
    modules = _modules(model)
    fused = [module.fused_attn for module in modules]
    seen: list[Tensor] = []

    def note(module: nn.Module, inputs: Any, out: Tensor) -> Tensor:
        seen.append(out if out.requires_grad or not torch.is_grad_enabled() else out.detach().requires_grad_())
        return seen[-1]

    try:
        for module in modules:
            module.fused_attn = False
        with watching([module.attn_drop for module in modules], note):
            yield seen
    finally:
        for module, flag in zip(modules, fused, strict=True):
            module.fused_attn = flag


def _modules(model: nn.Module) -> list[Any]:
    """timm's attention layers."""
    return [
        m for m in model.modules() if hasattr(m, "fused_attn") and isinstance(getattr(m, "attn_drop", None), nn.Module)
    ]


def _reason(attentions: list[Tensor], batch: int) -> str | None:
    """Why the layers cannot be multiplied; None: they can."""
    if not attentions:
        return "has no attention"
    if any(a.ndim != 4 or len(a) != batch or a.shape[-1] != a.shape[-2] for a in attentions):
        return "attends within windows"
    return None if len({a.shape[-1] for a in attentions}) == 1 else "merges patches between layers"


def _checked(attentions: list[Tensor], batch: int) -> list[Tensor]:
    reason = _reason(attentions, batch)
    if reason is not None:
        raise RequestError(f"attention is explained where every layer sees the whole image; this network {reason}")
    return attentions


def _transformer(model: nn.Module) -> Any:
    return next((m for m in model.modules() if hasattr(m, "patch_embed")), model)


def _grid(model: nn.Module, images: Tensor, tokens: int) -> tuple[int, int] | None:
    """Rows and columns of patches, told by the image's proportions; None where the tokens are no such grid."""
    count = tokens - int(getattr(_transformer(model), "num_prefix_tokens", 0))
    height, width = images.shape[2:]
    rows = max(1, round(math.sqrt(max(count, 1) * height / width)))
    resized = getattr(model, "resize", None)  # to a square
    rows = round(math.sqrt(max(count, 1))) if resized else rows
    return (rows, count // rows) if count > 0 and rows * (count // rows) == count else None


def _to_patches(model: nn.Module, images: Tensor, relevance: Tensor) -> Tensor:
    """Tokens by tokens -> what the class token, or all patches where there is none, has from each patch: [B, h, w]."""
    prefix = int(getattr(_transformer(model), "num_prefix_tokens", 0))
    grid = _grid(model, images, relevance.shape[-1])
    if grid is None:
        raise RequestError(f"the {relevance.shape[-1]} tokens of this network are no grid of patches; use occlusion")
    pools = prefix == 0 or getattr(_transformer(model), "global_pool", "token") == "avg"
    rows = relevance[:, prefix:].mean(1) if pools else relevance[:, 0]
    return rows[:, prefix:].reshape(-1, *grid)
