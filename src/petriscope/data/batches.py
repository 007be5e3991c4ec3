"""Batches on the device: an index into a resident tensor, or a read from a mapped file one batch ahead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from petriscope.data.imageset import ImageSet


class Batches:
    """The images of an image set, ready to be taken by the batch.

    Args:
        images: the set; kept on ``device`` as uint8 unless it is mapped from disk.
        device: where batches go.
        memory: ``auto`` keeps a mapped set on disk and all else resident; ``resident`` reads a mapped set into memory.
    """

    def __init__(
        self, images: ImageSet, device: torch.device, memory: Literal["auto", "resident", "mapped"] = "auto"
    ) -> None:
        self.images, self.device = images, device
        self.mapped = images.mapped and memory != "resident"
        self.targets = torch.from_numpy(images.targets).to(device)
        if not self.mapped:
            self._resident = torch.from_numpy(np.ascontiguousarray(images.images)).to(device)

    def take(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """uint8 [B, H, W, C] at ``indices``, with int64 [B], or masks uint8 [B, H, W]."""
        if self.mapped:
            return self._from_disk(indices)
        index = torch.from_numpy(indices).to(self.device)
        return self._resident.index_select(0, index), self.targets.index_select(0, index)

    def iterate(self, batches: Sequence[np.ndarray]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches in turn; from disk, each is read while the one before is used."""
        if not self.mapped:
            yield from map(self.take, batches)
            return
        with ThreadPoolExecutor(1) as reader:
            ahead = None
            for indices in batches:
                following = reader.submit(self.take, indices)
                if ahead is not None:
                    yield ahead.result()
                ahead = following
            if ahead is not None:
                yield ahead.result()

    def _from_disk(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        images = torch.from_numpy(np.ascontiguousarray(self.images.take(indices)))
        index = torch.from_numpy(indices)
        return images.to(self.device), self.targets[index.to(self.device)]
