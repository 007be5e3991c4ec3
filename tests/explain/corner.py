"""A network whose prediction depends on one known corner, and images for it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from petriscope.core.recipe import Recipe
from petriscope.core.results import CLASSIFICATION, SEGMENTATION
from petriscope.inference.predictor import Predictor
from petriscope.models.layers import is_dense
from petriscope.tasks import find_task


def predictor_of(model: nn.Module, classes: int = 3, shape: tuple[int, int, int] = (32, 32, 3)) -> Predictor:
    channels, names = shape[2], tuple("abcdefgh"[:classes])
    mean, std = (0.5,) * channels, (0.25,) * channels
    task = find_task(SEGMENTATION if is_dense(model) else CLASSIFICATION)
    return Predictor(model.eval(), Recipe(name="x"), task, names, shape, mean, std, torch.device("cpu"))


class Corner(nn.Module):
    """The brighter the upper left corner, the higher the probability of class 1; the rest of the image does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(2 * 16 * 16, 2))
        with torch.no_grad():
            self.blocks[0].weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
            self.blocks[0].bias.fill_(0.5)
            weight = torch.zeros(2, 2, 16, 16)
            weight[1, 0, 1:5, 1:5] = 0.5
            self.head[1].weight.copy_(weight.view(2, -1))
            self.head[1].bias.copy_(torch.tensor([0.0, -12.0]))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(images))


def corner_predictor() -> Predictor:
    return predictor_of(Corner(), 2, (16, 16, 1))


def corner_images(count: int = 6) -> np.ndarray:
    images = np.random.default_rng(1).integers(100, 156, (count, 16, 16, 1), dtype=np.uint8)
    images[:, 1:5, 1:5] = 250
    return images
