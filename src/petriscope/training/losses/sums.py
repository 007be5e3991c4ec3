"""A weighted sum of losses."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from petriscope.core.errors import RequestError
from petriscope.core.recipe import Part
from petriscope.training.losses import LOSSES, views_of


class Term(Part):
    """One loss of a sum, and how much it counts."""

    weight: Annotated[float, Field(gt=0)] = 1.0


def _checked(terms: tuple[Term, ...]) -> tuple[Term, ...]:
    if not terms:
        raise ValueError("names one loss at least")
    for position, term in enumerate(terms):
        if views_of(term).count:
            raise ValueError(
                f"{term.name} cannot be a term of a sum; give it the sum as its own loss: of: {{name: sum, terms: ...}}"
            )
        LOSSES.check(term, f"loss.terms.{position} ({term.name})")
    return terms


class SumOfLosses(nn.Module):
    """A weighted sum: ``{name: sum, terms: [cross-entropy, {name: dice, weight: 0.5}]}``.

    Args:
        counts: as of `petriscope.training.losses.class_weights.weigh_classes`.
        terms: losses with their options, each with a ``weight``, 1 unless given.
    """

    def __init__(self, counts: np.ndarray, *, terms: Annotated[tuple[Term, ...], AfterValidator(_checked)]) -> None:
        super().__init__()
        self.weights = [term.weight for term in terms]
        self.terms = nn.ModuleList(LOSSES.build(term, counts) for term in terms)
        kinds = {getattr(term, "per_label", False) for term in self.terms}
        if len(kinds) > 1:
            raise RequestError(
                "loss.terms: losses for one class per image and losses for any number of labels cannot be added: "
                + ", ".join(term.name for term in terms)
            )
        self.per_label = kinds.pop()

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Shapes as in `petriscope.training.losses` -> a scalar."""
        losses = [weight * term(logits, targets) for weight, term in zip(self.weights, self.terms, strict=True)]
        return torch.stack(losses).sum()
