"""Settings in words."""

from __future__ import annotations

from typing import Any

import pytest

from petriscope.core.recipe import FinetuneSection, TrainingSection
from petriscope.report import wording


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, ""),
        ({"train": "layer3, layer4"}, "layer3, layer4"),
        ({"lr_decay": 0.5}, "all; each block at 0.5 × the rate of the next block"),
        ({"train": "head", "unfreeze_every": 1}, "head; one more block every epoch, starting from the head"),
        ({"train": "head", "unfreeze_every": 2}, "head; one more block every 2 epochs, starting from the head"),
        (
            {"train": "head", "then": [{"epoch": 4, "train": "all"}, {"epoch": 1, "train": "last 2 blocks"}]},
            "head; from epoch 2: last 2 blocks; from epoch 5: all",
        ),
        ({"train": "head", "then": [{"epoch": 10, "train": "all"}]}, "head"),
    ],
)
def test_finetuning(settings: dict[str, Any], words: str) -> None:
    assert wording.finetuning(FinetuneSection(**settings), epochs=10) == words


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ema": None}, ""),
        ({"ema": 0.99}, "running mean (EMA, decay 0.99)"),
        (
            {"ema": 0.99, "swa": 0.25, "epochs": 8},
            "running mean (EMA, decay 0.99); from epoch 7: mean over the epochs (SWA)",
        ),
        ({"ema": None, "swa": 0.01, "epochs": 8}, "from epoch 8: mean over the epochs (SWA)"),
    ],
)
def test_averaging(settings: dict[str, Any], words: str) -> None:
    assert wording.averaging(TrainingSection(**settings)) == words


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, ""),
        ({"epochs": 1, "progressive": {"size": 64}}, ""),
        ({"epochs": 5, "progressive": {"size": 64}}, "the first 2 epochs on images of 64 pixels on the shorter side"),
    ],
)
def test_progressive(settings: dict[str, Any], words: str) -> None:
    assert wording.progressive(TrainingSection(**settings)) == words
