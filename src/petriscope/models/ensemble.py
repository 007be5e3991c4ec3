"""Several trained networks as one: made by `petriscope.ensembling`, used as any model is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from petriscope.errors import RequestError
from petriscope.recipe import Part

FLOOR = 1e-9  # of a probability, before its logarithm: no member may shout


class Member(BaseModel):
    """A network of an ensemble: how it is built, and how it wants pictures.

    Args:
        model: name and options.
        mean, std: it normalizes by, a figure a channel, in units of the full range.
        weight: of its vote; the weights of all members sum to 1.
        run: where it came from, for people.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    model: Part
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]
    weight: Annotated[float, Field(ge=0)] = 1.0
    run: str = ""


class MeanVote(nn.Module):
    """Logarithms of probabilities by M networks, float [B, M * K] -> of their weighted mean, [B, K].

    Args:
        weights: [M], not negative; only their ratios count.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        total = sum(weights)
        if not total > 0:
            raise RequestError("ensemble: the members' weights are all 0")
        self.log_weights = [math.log(max(weight / total, 1e-12)) for weight in weights]

    def forward(self, log_p: Tensor) -> Tensor:
        each = log_p.unflatten(1, (len(self.log_weights), -1)).unbind(1)
        return torch.stack([p + weight for p, weight in zip(each, self.log_weights, strict=True)]).logsumexp(0)


class Ensemble(nn.Module):
    """The weighted mean of the members' probabilities, or a linear model on their logarithms (stacking; Wolpert, 1992,
    Neural Networks 5:241).

    Args:
        channels, classes, size: as for every model.
        members: each sees the picture normalized in its own way.
        vote: ``mean`` or ``stacking``.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        size: tuple[int, int],
        *,
        members: Annotated[tuple[Member, ...], Field(min_length=1)],
        vote: Literal["mean", "stacking"] = "mean",
    ) -> None:
        from petriscope.models import build_model

        super().__init__()
        for member in members:
            if len(member.mean) != channels or len(member.std) != channels:
                raise RequestError(
                    f"ensemble: a member normalizes {len(member.mean)} channels; pictures have {channels}"
                )
        shape = (*size, channels)
        self.members = nn.ModuleList(build_model(member.model, classes, shape, fresh=False) for member in members)
        for i, member in enumerate(members):
            mean, std = torch.tensor(member.mean), torch.tensor(member.std)
            self.register_buffer(f"scale{i}", (1 / std)[:, None, None], persistent=False)
            self.register_buffer(f"bias{i}", (-mean / std)[:, None, None], persistent=False)
        stacks = vote == "stacking"
        self.head = nn.Linear(len(members) * classes, classes) if stacks else MeanVote([m.weight for m in members])

    def forward(self, images: Tensor) -> Tensor:
        """Pictures in [0, 1], float [B, C, H, W] -> log-probabilities (stacking: logits), float32 [B, K]."""
        each = []
        for i, member in enumerate(self.members):
            scale, bias = getattr(self, f"scale{i}"), getattr(self, f"bias{i}")
            each.append(member(torch.addcmul(bias, images, scale)).float().log_softmax(1))
        with torch.autocast(images.device.type, enabled=False):
            return self.head(torch.cat(each, 1).clamp_min(math.log(FLOOR)))
