"""Cost of a model: multiply-adds count attention, and measuring the rate takes bounded time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from petriscope.core.recipe import Part
from petriscope.inference import speed as cost
from petriscope.models import build_model


class Attention(nn.Module):
    """Two tokens of four numbers, projected and attended to: 2 x 4 x 4 + 2 x (2 x 2 x 4) = 64 multiply-adds."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(4, 4, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.project(images)
        return F.scaled_dot_product_attention(tokens, tokens, tokens).flatten(1)


def test_attention_is_counted_on_a_cpu() -> None:
    assert cost.multiply_adds(Attention(), (2, 4, 1)) == 64


def test_a_transformer_has_the_same_count_on_every_device() -> None:
    shape = (224, 224, 3)
    with torch.device("meta"):
        model = build_model(Part(name="deit-tiny"), 8, shape, fresh=False)
        of_shapes_alone = cost.multiply_adds(model, shape)
    # 12 blocks, patches and head; 1.3 billion in the paper.
    assert of_shapes_alone == cost.multiply_adds(model.to_empty(device="cpu"), shape) == 1_253_492_736


def test_counting_leaves_the_mode_as_it_was() -> None:
    model = Attention().train()
    cost.multiply_adds(model, (2, 4, 1))
    assert model.training


class Clockwork:
    """A predictor that takes a given time, by its own clock."""

    shape, dtype = (2, 2, 1), np.dtype(np.uint8)

    def __init__(self, per_image: float, per_batch: float = 0.0) -> None:
        self.per_image, self.per_batch = per_image, per_batch
        self.now, self.sizes = 0.0, list[int]()

    def probabilities(self, images: np.ndarray, tta: str) -> None:
        assert tta == "none" and images.dtype == np.uint8 and images.shape[1:] == self.shape
        self.now += self.per_batch + self.per_image * len(images)
        self.sizes.append(len(images))

    def rate(self, monkeypatch: pytest.MonkeyPatch) -> float:
        monkeypatch.setattr(cost.time, "perf_counter", lambda: self.now)
        return cost.inference_rate(self)  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", [1e-6, 1e-4, 1e-3, 0.01, 0.1, 0.5, 1.0, 60.0])
def test_the_rate_is_measured_in_three_seconds_and_one_small_batch(
    monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    predictor = Clockwork(seconds)
    assert predictor.rate(monkeypatch) == pytest.approx(1 / seconds)
    assert predictor.now <= 3 + predictor.sizes[0] * seconds
    assert predictor.sizes[0] <= 4


def test_a_fast_model_is_measured_in_large_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Clockwork(1e-4, per_batch=0.01)
    assert predictor.rate(monkeypatch) == pytest.approx(256 / (0.01 + 0.0256))
    assert predictor.sizes.count(256) >= 3


def test_the_first_batch_warms_up_and_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Clockwork(0.2)
    predictor.now, warm = 0.0, predictor.probabilities

    def cold(images: np.ndarray, tta: str) -> None:
        warm(images, tta)
        predictor.now += 1.0 if len(predictor.sizes) == 1 else 0.0

    monkeypatch.setattr(predictor, "probabilities", cold)
    assert predictor.rate(monkeypatch) == pytest.approx(5)
