"""An ensemble of trained networks as one model; `petriscope.experiments.ensemble` makes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from petriscope.core.errors import RequestError
from petriscope.core.recipe import Part
from petriscope.models.layers import is_dense

FLOOR = 1e-9  # least probability before the logarithm, so that no single member dominates


class Member(BaseModel):
    """A network of an ensemble: how it is built, and how its images are normalized.

    Args:
        model: name and options.
        mean, std: of its normalization, one value per channel, in units of the full range.
        weight: of its vote; the weights of all members sum to 1.
        only: for a specialist of two classes, the index of the class that it tells from all others; None: all classes.
        run: the run it comes from, for information.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    model: Part
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]
    weight: Annotated[float, Field(ge=0)] = 1.0
    only: Annotated[int, Field(ge=0)] | None = None
    run: str = ""


class MeanVote(nn.Module):
    """Log-probabilities of M networks, float [B, M * K, ...] -> the logarithm of their weighted mean, [B, K, ...].

    Args:
        weights: [M], not negative; only their ratios matter.

    Raises:
        RequestError: all weights are 0.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        total = sum(weights)
        if not total > 0:
            raise RequestError("ensemble: the weights of all members are 0; give one of them a positive weight")
        self.log_weights = [math.log(max(weight / total, 1e-12)) for weight in weights]

    def forward(self, log_p: Tensor) -> Tensor:
        each = log_p.unflatten(1, (len(self.log_weights), -1)).unbind(1)
        return torch.stack([p + weight for p, weight in zip(each, self.log_weights, strict=True)]).logsumexp(0)


class LabelVote(MeanVote):
    """The same of the probabilities of labels that do not exclude one another; gives log-odds."""

    def forward(self, log_p: Tensor) -> Tensor:
        mean = super().forward(log_p).clamp_max(-FLOOR)
        return mean - (-mean.expm1()).log()


class SpecialistRule(nn.Module):
    """The prediction of a main network, except for one class, which a specialist helps to decide.

    An image or pixel belongs to the class if its score, ``share * main + (1 - share) * specialist`` in probabilities, is
    above ``threshold``. Otherwise it belongs to the most probable of the other classes according to the main network.
    Probabilities are made to agree: the odds of the class against the most probable other class are the odds of the score
    divided by those of the threshold.

    Args:
        index: of the class.
        threshold: between 0 and 1.
        share: weight of the main network's probability in the score, 0 <= share < 1.
    """

    def __init__(self, index: int, threshold: float, share: float) -> None:
        super().__init__()
        self.index, self.cut = index, math.log(threshold / (1 - threshold))
        self.score = MeanVote([share, 1 - share])

    def log_odds(self, log_p: Tensor) -> Tensor:
        """Log-odds of the score; input as of `forward`: [B, K + 2, ...] -> [B, ...]."""
        others, own, specialist = self._parts(log_p)
        main = torch.stack([others.logsumexp(1), own], 1)
        rest, score = self.score(torch.cat([main, specialist], 1)).unbind(1)
        return score - rest

    def forward(self, log_p: Tensor) -> Tensor:
        """Log-probabilities, float [B, K + 2, ...]: K classes by the main network, then "others" and "the class" by the
        specialist -> log-probabilities [B, K, ...]."""
        others, _, _ = self._parts(log_p)
        own = (others.amax(1) + self.log_odds(log_p) - self.cut)[:, None]
        return torch.cat([others[:, : self.index], own, others[:, self.index :]], 1).log_softmax(1)

    def _parts(self, log_p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        main, specialist = log_p[:, :-2], log_p[:, -2:]
        others = torch.cat([main[:, : self.index], main[:, self.index + 1 :]], 1)
        return others, main[:, self.index], specialist


class Ensemble(nn.Module):
    """The weighted mean of the members' probabilities, a linear model on their logarithms (stacking; Wolpert, 1992,
    Neural Networks 5:241), or a main network and a specialist of one class.

    Args:
        channels, classes, size: as for every model.
        members: the networks, each with its own normalization.
        vote: ``mean``, ``labels`` (the same where an image has any number of classes), ``stacking`` or ``specialist``; the latter
            needs a main network and one with ``only``.
        threshold, share: of `SpecialistRule`.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        size: tuple[int, int],
        *,
        members: Annotated[tuple[Member, ...], Field(min_length=1)],
        vote: Literal["mean", "labels", "stacking", "specialist"] = "mean",
        threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5,
        share: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        from petriscope.models import build_model

        super().__init__()
        for member in members:
            if len(member.mean) != channels or len(member.std) != channels:
                raise RequestError(f"ensemble: a member normalizes {len(member.mean)} channels; images have {channels}")
        only = [member.only for member in members]
        if [index is not None for index in only] != ([False, True] if vote == "specialist" else [False] * len(members)):
            raise RequestError(
                "ensemble: with vote: specialist there must be two members, the second with only; with other votes none has only"
            )
        self.members = nn.ModuleList(
            build_model(m.model, classes if m.only is None else 2, (*size, channels), fresh=False) for m in members
        )
        self.dense = any(map(is_dense, self.members))
        for i, member in enumerate(members):
            mean, std = torch.tensor(member.mean), torch.tensor(member.std)
            self.register_buffer(f"scale{i}", (1 / std)[:, None, None], persistent=False)
            self.register_buffer(f"bias{i}", (-mean / std)[:, None, None], persistent=False)
        if vote == "stacking":
            self.head: nn.Module = nn.Linear(len(members) * classes, classes)
        elif only[-1] is not None:
            self.head = SpecialistRule(only[-1], threshold, share)
        else:
            self.head = (LabelVote if vote == "labels" else MeanVote)([m.weight for m in members])
        self.labels = vote == "labels"

    def forward(self, images: Tensor) -> Tensor:
        """Images in [0, 1], float [B, C, H, W] -> log-probabilities (labels: log-odds; stacking: logits), float32 [B, K], or of
        every pixel [B, K, H, W]."""
        each = []
        for i, member in enumerate(self.members):
            scale, bias = getattr(self, f"scale{i}"), getattr(self, f"bias{i}")
            logits = member(torch.addcmul(bias, images, scale)).float()
            each.append(logsigmoid(logits) if self.labels else logits.log_softmax(1))
        with torch.autocast(images.device.type, enabled=False):
            return self.head(torch.cat(each, 1).clamp_min(math.log(FLOOR)))
