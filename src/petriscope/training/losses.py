"""Losses: logits [B, K] and targets -> a scalar."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from petriscope.errors import RequestError
from petriscope.parts import Catalogue

LOSSES = Catalogue("loss", {"cross-entropy": "petriscope.training.losses:CrossEntropy"})


def weigh_classes(rule: Literal["none", "balanced"] | tuple[float, ...], counts: np.ndarray) -> Tensor | None:
    """A weight a class, float32 [K], or None.

    Args:
        rule: ``balanced``: in inverse proportion to the class's pictures, so that every class weighs the same in an
            epoch and the mean weight of a picture is 1; or the weights themselves.
        counts: training pictures a class, [K].
    """
    if rule == "none":
        return None
    if rule == "balanced":
        return torch.from_numpy(counts.sum() / (len(counts) * np.maximum(counts, 1))).float()
    if len(rule) != len(counts):
        raise RequestError(f"loss.class_weights has {len(rule)} numbers for {len(counts)} classes")
    return torch.tensor(rule)


class CrossEntropy(nn.Module):
    """Cross-entropy with label smoothing and class weights.

    Args:
        counts: training pictures a class, [K].
        label_smoothing: the share of each target spread over all classes. Szegedy et al., 2016, arXiv:1512.00567.
        class_weights: none, balanced, or a number a class.
    """

    weight: Tensor | None

    def __init__(
        self,
        counts: np.ndarray,
        *,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        class_weights: Literal["none", "balanced"] | tuple[Annotated[float, Field(ge=0)], ...] = "none",
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("weight", weigh_classes(class_weights, counts))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """float [B, K] and int64 [B] (or soft targets, float [B, K]) -> the mean loss, a scalar."""
        return nn.functional.cross_entropy(logits, targets, weight=self.weight, label_smoothing=self.label_smoothing)
