"""Attention maps of vision transformers: attention, multiplied across layers."""

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
    """Attention rollout: how much each patch contributes to the class token through attention and residual connections.
    It is the same for every class. Abnar and Zuidema, 2020, arXiv:2005.00928.

    Args:
        model: a vision transformer of timm, in evaluation mode.
        images: normalized float32 [B, C, H, W].
        question: not used.

    Returns:
        float32 [B, h, w], one value per patch.

    Raises:
        RequestError: the network does not attend over the whole image in every layer.
    """
    with watched(model) as attentions, torch.no_grad():
        model(images)
    return _to_patches(model, images, rollout(_checked(attentions, len(images))))


def attention_gradient(model: nn.Module, images: Tensor, question: Question) -> Tensor:
    """As `attention_rollout`, with the attention of each head weighted by the positive part of its gradient for the class.
    Chefer et al., 2021, "Generic Attention-model Explainability", arXiv:2103.15679, the rule for self-attention.
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
    """The share of each input token (columns) in each output token (rows), [B, N, N]. Rows sum to 1.

    Args:
        attentions: attention of each layer, first to last, [B, heads, N, N] each.
    """
    eye = torch.eye(attentions[0].shape[-1], device=attentions[0].device)
    total = eye.expand(len(attentions[0]), -1, -1)
    for attention in attentions:
        mixed = (attention.detach().mean(1) + eye) / 2
        total = mixed / mixed.sum(-1, keepdim=True) @ total
    return total


def sees_whole_image(model: nn.Module, images: Tensor) -> bool:
    """Whether every attention layer attends to all patches of the image, so that layers can be multiplied."""
    if not _modules(model):
        return False
    with watched(model) as attentions, torch.no_grad():
        model(images)
    return _reason(attentions, len(images)) is None and _grid(model, images, attentions[0].shape[-1]) is not None


@contextmanager
def watched(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the attention of each layer, [B, heads, N, N], during a forward pass. Fused attention is switched off, because
    it never computes the attention matrix."""
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
    """The attention layers of a timm model."""
    return [
        m for m in model.modules() if hasattr(m, "fused_attn") and isinstance(getattr(m, "attn_drop", None), nn.Module)
    ]


def _reason(attentions: list[Tensor], batch: int) -> str | None:
    """Why layers cannot be multiplied; None if they can."""
    if not attentions:
        return "has no attention"
    if any(a.ndim != 4 or len(a) != batch or a.shape[-1] != a.shape[-2] for a in attentions):
        return "attends within windows"
    return None if len({a.shape[-1] for a in attentions}) == 1 else "merges patches between layers"


def _checked(attentions: list[Tensor], batch: int) -> list[Tensor]:
    reason = _reason(attentions, batch)
    if reason is not None:
        raise RequestError(
            f"attention methods need attention over the whole image in every layer; this network {reason}; use occlusion"
        )
    return attentions


def _transformer(model: nn.Module) -> Any:
    return next((m for m in model.modules() if hasattr(m, "patch_embed")), model)


def _grid(model: nn.Module, images: Tensor, tokens: int) -> tuple[int, int] | None:
    """Rows and columns of patches, from the proportions of the image; None if the tokens do not form such a grid."""
    count = tokens - int(getattr(_transformer(model), "num_prefix_tokens", 0))
    height, width = images.shape[2:]
    rows = max(1, round(math.sqrt(max(count, 1) * height / width)))
    resized = getattr(model, "resize", None)  # to a square
    rows = round(math.sqrt(max(count, 1))) if resized else rows
    return (rows, count // rows) if count > 0 and rows * (count // rows) == count else None


def _to_patches(model: nn.Module, images: Tensor, relevance: Tensor) -> Tensor:
    """Relevance between tokens, [B, N, N] -> the relevance of each patch for the class token, [B, h, w]; without a class
    token, the mean over all patches."""
    prefix = int(getattr(_transformer(model), "num_prefix_tokens", 0))
    grid = _grid(model, images, relevance.shape[-1])
    if grid is None:
        raise RequestError(
            f"the {relevance.shape[-1]} tokens of this network do not form a grid of patches; use occlusion"
        )
    pools = prefix == 0 or getattr(_transformer(model), "global_pool", "token") == "avg"
    rows = relevance[:, prefix:].mean(1) if pools else relevance[:, 0]
    return rows[:, prefix:].reshape(-1, *grid)
