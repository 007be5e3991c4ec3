"""Losses: logits and targets -> a scalar.

Targets are labels, int64 [B], or the share of each class, float [B, K], for logits [B, K]; or masks, int64 [B, H, W], for
logits [B, K, H, W]. Pixels whose mask says `IGNORE` are left out, and a batch without any labeled pixel has loss 0.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from petriscope.core.errors import RequestError
from petriscope.core.masks import IGNORE
from petriscope.core.recipe import Part
from petriscope.core.registry import Registry
from petriscope.training.borders import near_borders

LOSSES = Registry(
    "loss",
    {
        "cross-entropy": "petriscope.training.losses:CrossEntropy",
        "focal": "petriscope.training.losses:FocalLoss",
        "generalized-cross-entropy": "petriscope.training.losses:GeneralizedCrossEntropy",
        "dice": "petriscope.training.region_losses:DiceLoss",
        "tversky": "petriscope.training.region_losses:TverskyLoss",
        "lovasz": "petriscope.training.region_losses:LovaszSoftmax",
        "sum": "petriscope.training.losses:SumOfLosses",
        "consistency": "petriscope.training.consistency:Consistency",
    },
)

ClassWeights = Literal["none", "balanced", "median-frequency"] | tuple[Annotated[float, Field(ge=0)], ...]
Emphasis = Annotated[float, Field(ge=0)]
Sigma = Annotated[float, Field(gt=0, le=20)]


def weigh_classes(rule: ClassWeights, counts: np.ndarray) -> Tensor | None:
    """One weight per class, float32 [K], or None.

    Args:
        rule: ``balanced``: in inverse proportion to the class's images, so that every class weighs the same in an
            epoch and the mean weight of an image is 1; ``median-frequency``: the median frequency over the class's, where
            a frequency is the class's share of the pixels of those images that have it, so that a class that is rare
            because few images have it gains less (Eigen and Fergus, 2015, arXiv:1411.4734); or the weights themselves.
        counts: training images per class, [K]; or of masks the pixels of each class in each image, [N, K].
    """
    total = counts.sum(0) if counts.ndim == 2 else counts
    if rule == "none":
        return None
    if rule == "balanced":
        return torch.from_numpy(total.sum() / (len(total) * np.maximum(total, 1))).float()
    if rule == "median-frequency":
        return torch.from_numpy(_median_over_frequency(counts, total)).float()
    if len(rule) != len(total):
        raise RequestError(f"loss.class_weights has {len(rule)} numbers for {len(total)} classes")
    return torch.tensor(rule)


def _median_over_frequency(counts: np.ndarray, total: np.ndarray) -> np.ndarray:
    """float64 [K]; 1 for a class that no image has."""
    if counts.ndim == 2:
        room = np.where(counts > 0, counts.sum(1, keepdims=True), 0).sum(0)
    else:
        room = np.full(len(total), total.sum())
    frequency = total / np.maximum(room, 1)
    there = frequency > 0
    median = np.median(frequency[there]) if there.any() else 1.0
    return np.where(there, median / np.where(there, frequency, 1.0), 1.0)


class CrossEntropy(nn.Module):
    """Cross-entropy with label smoothing and class weights.

    Args:
        counts: training images per class, [K], or pixels of each class in each image, [N, K].
        label_smoothing: the share of each target spread over all classes. Szegedy et al., 2016, arXiv:1512.00567.
        class_weights: none, balanced, median-frequency, or one number per class.
        borders: of masks: how much more a pixel on a border between classes counts than one far from all. Ronneberger et
            al., 2015, arXiv:1505.04597, who use 10.
        border_sigma: pixels over which that fades, as a Gaussian of the distance.
    """

    weight: Tensor | None

    def __init__(
        self,
        counts: np.ndarray,
        *,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        class_weights: ClassWeights = "none",
        borders: Emphasis = 0.0,
        border_sigma: Sigma = 2.0,
    ) -> None:
        super().__init__()
        self.label_smoothing, self.borders, self.border_sigma = label_smoothing, borders, border_sigma
        self.register_buffer("weight", weigh_classes(class_weights, counts))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits, float [B, K], or [B, K, H, W] for masks; targets int64 [B] or [B, H, W], or the share of each class,
        float [B, K] -> the mean loss, a scalar."""
        if targets.ndim != 3:
            return nn.functional.cross_entropy(
                logits, targets, weight=self.weight, label_smoothing=self.label_smoothing
            )
        losses = nn.functional.cross_entropy(
            logits,
            targets,
            weight=self.weight,
            label_smoothing=self.label_smoothing,
            ignore_index=IGNORE,
            reduction="none",
        )
        return _mean_over_pixels(losses, targets, self.weight, self.borders, self.border_sigma)


class FocalLoss(nn.Module):
    """Cross-entropy whose terms count less the surer the model is of them: -(1 - p)^gamma log p. Lin et al., 2017,
    arXiv:1708.02002.

    Args:
        counts: training images per class, [K], or pixels of each class in each image, [N, K].
        gamma: 0 is cross-entropy; the paper's is 2.
        class_weights: none, balanced, median-frequency, or one number per class (the paper's alpha).
        borders, border_sigma: as of `CrossEntropy`.
    """

    weight: Tensor | None

    def __init__(
        self,
        counts: np.ndarray,
        *,
        gamma: Annotated[float, Field(ge=0)] = 2.0,
        class_weights: ClassWeights = "none",
        borders: Emphasis = 0.0,
        border_sigma: Sigma = 2.0,
    ) -> None:
        super().__init__()
        self.gamma, self.borders, self.border_sigma = gamma, borders, border_sigma
        self.register_buffer("weight", weigh_classes(class_weights, counts))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """As `CrossEntropy.forward`."""
        log_p = logits.log_softmax(1)
        terms = (1 - log_p.exp()) ** self.gamma * log_p
        return _mean_over(terms, targets, self.weight, self.borders, self.border_sigma)


class GeneralizedCrossEntropy(nn.Module):
    """(1 - p^q) / q: between cross-entropy (q to 0), which learns every label, and the absolute error (q = 1), which
    gives up on labels it finds unlikely. For noisy labels. Zhang and Sabuncu, 2018, arXiv:1805.07836.

    Args:
        counts: training images per class, [K], or pixels of each class in each image, [N, K].
        q: the paper's is 0.7.
        class_weights: none, balanced, median-frequency, or one number per class.
    """

    weight: Tensor | None

    def __init__(
        self,
        counts: np.ndarray,
        *,
        q: Annotated[float, Field(gt=0, le=1)] = 0.7,
        class_weights: ClassWeights = "none",
    ) -> None:
        super().__init__()
        self.q = q
        self.register_buffer("weight", weigh_classes(class_weights, counts))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """As `CrossEntropy.forward`."""
        terms = ((self.q * logits.log_softmax(1)).exp() - 1) / self.q
        return _mean_over(terms, targets, self.weight)


def views_of(part: Part) -> int:
    """How many views of each image a loss is given beside it. Its logits are then of the images [B], of their first
    views [B], and so on; targets [B] are of the images."""
    return int(LOSSES.check(part).get("views", 0)) if part.name == "consistency" else 0


class Term(Part):
    """One loss of a sum, and how much it counts."""

    weight: Annotated[float, Field(gt=0)] = 1.0


def _checked(terms: tuple[Term, ...]) -> tuple[Term, ...]:
    if not terms:
        raise ValueError("names one loss at least")
    for position, term in enumerate(terms):
        if views_of(term):
            raise ValueError(
                f"{term.name} is no term of a sum: it takes the sum as its own loss, of: {{name: sum, ...}}"
            )
        LOSSES.check(term, f"loss.terms.{position} ({term.name})")
    return terms


class SumOfLosses(nn.Module):
    """A weighted sum: ``{name: sum, terms: [cross-entropy, {name: dice, weight: 0.5}]}``.

    Args:
        counts: training images per class, [K], or pixels of each class in each image, [N, K].
        terms: losses with their options, each with a ``weight``, 1 unless given.
    """

    def __init__(self, counts: np.ndarray, *, terms: Annotated[tuple[Term, ...], AfterValidator(_checked)]) -> None:
        super().__init__()
        self.weights = [term.weight for term in terms]
        self.terms = nn.ModuleList(LOSSES.build(term, counts) for term in terms)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """As `CrossEntropy.forward`."""
        losses = [weight * term(logits, targets) for weight, term in zip(self.weights, self.terms, strict=True)]
        return torch.stack(losses).sum()


def _mean_over(
    terms: Tensor, targets: Tensor, weight: Tensor | None, borders: float = 0.0, border_sigma: float = 1.0
) -> Tensor:
    """Minus the mean of the terms [B, K, ...] at the targets; with weights, as torch means it: hard targets are divided
    by the sum of their weights, soft ones by their number."""
    if targets.ndim == 3:
        losses = nn.functional.nll_loss(terms, targets, weight=weight, ignore_index=IGNORE, reduction="none")
        return _mean_over_pixels(losses, targets, weight, borders, border_sigma)
    if not targets.is_floating_point():
        return nn.functional.nll_loss(terms, targets, weight=weight)
    if weight is not None:
        targets = targets * weight.view(-1, *(1,) * (targets.ndim - 2))
    return -(terms * targets).sum(1).mean()


def _mean_over_pixels(
    losses: Tensor, masks: Tensor, weight: Tensor | None, borders: float, border_sigma: float
) -> Tensor:
    """The mean of losses [B, H, W], weighted already by class and 0 where unlabeled, over the labeled pixels' weights; 0
    where none is labeled."""
    labeled = masks != IGNORE
    shares = labeled.to(losses.dtype)
    if weight is not None:
        shares = shares * weight[torch.where(labeled, masks, 0)]
    if borders:
        emphasis = 1 + borders * near_borders(masks, border_sigma)
        losses, shares = losses * emphasis, shares * emphasis
    return losses.sum() / shares.sum().clamp_min(torch.finfo(losses.dtype).tiny)
