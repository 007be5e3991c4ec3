"""Features of a frozen backbone, computed once, so that every epoch trains only the head."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from petriscope.core.device import Format, autocast, free_memory
from petriscope.core.progress import progress
from petriscope.core.ranks import ALONE, Ranks
from petriscope.data.batches import Batches
from petriscope.models.layers import watching

SHARE_OF_MEMORY = 0.25  # of the free memory, for features


class FeatureBatches(Batches):
    """Batches of features in place of images.

    Args:
        batches: the batches of images, which have the targets.
        features: float32 [N, ...], on the device.
    """

    def __init__(self, batches: Batches, features: Tensor) -> None:
        self.images, self.device, self.targets = batches.images, batches.device, batches.targets
        self._resident = features


@torch.no_grad()
def frozen_features(
    model: nn.Module,
    head: str,
    batches: Batches,
    normalize: Callable[[Tensor], Tensor],
    number_format: Format,
    quiet: bool = False,
    batch_size: int = 256,
    ranks: Ranks = ALONE,
) -> FeatureBatches | None:
    """The input of the head for every image. The model stays in its current mode.

    Args:
        ranks: the processes that share the images. All call this, and all get the features of all images.

    Returns:
        None if the features do not depend on the image alone (dropout before the head), if the head is not the last
        operation of the model, or if the features would take more than a quarter of the free memory.
    """
    order = np.arange(len(batches.images))
    chunks = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    seen: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        seen[:] = [inputs[0].detach()]

    def run(indices: np.ndarray) -> tuple[Tensor, Tensor]:
        images = normalize(batches.take(indices)[0])
        with autocast(batches.device, number_format):
            logits = model(images)
        return seen[0].float(), logits

    with watching([model.get_submodule(head)], note):
        first, _ = run(chunks[0][:8])
        again, logits = run(chunks[0][:8])
        last = _apply_head(model, head, again, batches.device, number_format)
        unfit = not torch.equal(first, again) or not _same(logits.float(), last)
        large = first[0].numel() * 4 * len(order) > SHARE_OF_MEMORY * free_memory(batches.device)
        if ranks.any(unfit or large):
            return None
        out = torch.empty(len(order), *first.shape[1:], device=batches.device)
        with progress("running the frozen backbone once", len(order)) as bar:
            for indices in chunks:

                def look(own: slice, some: np.ndarray = indices) -> list[Tensor]:
                    return [run(some[own])[0]]

                (found,) = ranks.spread("features", len(indices), look)
                out[int(indices[0]) : int(indices[-1]) + 1] = found
                if not quiet:
                    bar.advance(len(indices))
    return FeatureBatches(batches, out)


def _same(logits: Tensor, last: Tensor) -> bool:
    return logits.shape == last.shape and torch.allclose(logits, last, rtol=1e-2, atol=1e-2)


def _apply_head(model: nn.Module, head: str, features: Tensor, device: torch.device, number_format: Format) -> Tensor:
    module = model.get_submodule(head)
    training = module.training
    module.eval()
    with autocast(device, number_format):
        logits: Tensor = module(features)
    module.train(training)
    return logits.float()
