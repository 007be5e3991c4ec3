"""The training images most similar to an image, by the cosine similarity of the features before the last layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from petriscope.core.device import Format, autocast, tensor_of
from petriscope.core.progress import TimeLeft, progress, unlimited
from petriscope.core.ranks import ALONE, Ranks
from petriscope.data.imageset import ImageSet
from petriscope.models.layers import last_linear, watching

BATCH = 256


@dataclass(frozen=True, eq=False)
class Neighbors:
    """The nearest training images of M images.

    Args:
        rows: indices of training images, int64 [M, k], the nearest first.
        similarity: cosine similarity of the features, float32 [M, k].
        among: number of training images that were searched.
    """

    rows: np.ndarray
    similarity: np.ndarray
    among: int


def nearest(
    model: nn.Module,
    normalize: Callable[[Tensor], Tensor],
    number_format: Format,
    batch: np.ndarray,
    train: ImageSet,
    k: int = 5,
    most: int | None = None,
    quiet: bool = True,
    left: TimeLeft = unlimited,
    ranks: Ranks = ALONE,
) -> Neighbors | None:
    """The k nearest training images of each image.

    Args:
        model: in evaluation mode.
        normalize: uint8 [B, H, W, C] -> float32 [B, C, H, W].
        batch: the images, uint8 [M, H, W, C].
        k: number of neighbors.
        most: number of training images to search, drawn with a fixed seed; None: all.
        left: the time that there is for it; of several processes, that of none is limited.
        ranks: the processes that share the training images. All call this, and all get the neighbors.

    Returns:
        None if the network does not end in a linear layer, or there is not enough time.
    """
    layer = last_linear(model)
    if layer is None:
        return None
    rows = np.arange(len(train))
    if most is not None and most < len(rows):
        rows = np.sort(np.random.default_rng(0).choice(len(train), most, replace=False))
    device = next(model.parameters()).device
    seen: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        seen[:] = [inputs[0]]

    def directions(images: np.ndarray) -> Tensor:
        with autocast(device, number_format):
            model(normalize(tensor_of(images).to(device)))
        return nn.functional.normalize(seen[0].float().flatten(1), dim=1)

    with (
        torch.inference_mode(),
        watching([layer], note),
        progress("finding similar training images", len(rows)) as bar,
    ):
        asked = directions(batch)
        similar: list[Tensor] = []
        for start in range(0, len(rows), BATCH):
            if left() <= 0:
                return None
            block = rows[start : start + BATCH]
            pixels = train.take(block)

            def look(own: slice, some: np.ndarray = pixels) -> list[Tensor]:
                return [directions(some[own])]

            (found,) = ranks.spread("similar images", len(block), look)
            similar.append(asked @ found.T)
            if not quiet:
                bar.advance(len(block))
        found, index = torch.cat(similar, 1).topk(min(k, len(rows)), dim=1)
    return Neighbors(rows[index.cpu().numpy()], found.cpu().numpy(), len(rows))
