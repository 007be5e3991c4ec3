"""Batches on the device: an index into a resident tensor, or a read one batch ahead."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from petriscope.core.device import free_memory, rows_of, tensor_of, upload
from petriscope.data.imageset import ImageSet
from petriscope.data.streamed import Streamed

SHARE = 0.5  # of a device's free memory, for images; models and their activations need the rest
CHUNK = 1024  # images that are copied to a device at a time


class Batches:
    """The images of an image set, ready to be taken by the batch.

    Args:
        images: the set.
        device: where batches go.
        memory: ``resident``: the whole set is kept on ``device``, as uint8 or uint16. ``auto``: so is a set that fits into half
            of the free memory of a GPU, wherever it comes from; on the CPU, all but a set that is mapped from disk. ``mapped``:
            as ``auto`` on the CPU, and nothing is kept on a GPU. What is not kept is read by the batch.
    """

    def __init__(
        self, images: ImageSet, device: torch.device, memory: Literal["auto", "resident", "mapped"] = "auto"
    ) -> None:
        self.images, self.device = images, device
        self.targets = tensor_of(images.targets).to(device)
        self._resident = self._copied() if memory == "resident" or self._fits(memory) else None

    def _fits(self, memory: str) -> bool:
        if self.device.type == "cpu":
            return not self.images.mapped
        size = len(self.images) * math.prod(self.images.shape) * self.images.bits // 8
        return memory == "auto" and size <= SHARE * free_memory(self.device)

    def _copied(self) -> Tensor:
        if self.device.type == "cpu":
            return tensor_of(self.images.images)
        dtype = torch.uint8 if self.images.bits == 8 else torch.uint16
        out = torch.empty((len(self.images), *self.images.shape), dtype=dtype, device=self.device)
        for start in range(0, len(out), CHUNK):
            part = out[start : start + CHUNK]
            part.copy_(tensor_of(self.images.take(np.arange(start, start + len(part)))))
        return out

    def take(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """uint8 or uint16 [B, H, W, C] at ``indices``, with int64 [B], or masks uint8 [B, H, W]."""
        index = upload(tensor_of(indices), self.device)
        if self._resident is None:
            images = upload(tensor_of(self.images.take(indices)), self.device)
        else:
            images = rows_of(self._resident, index)
        return images, self.targets.index_select(0, index)

    def iterate(self, batches: Sequence[np.ndarray]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches in turn. If the set is not kept on the device, each is read while the one before is used."""
        if self._resident is not None:
            yield from map(self.take, batches)
            return
        if isinstance(pixels := self.images.pixels, Streamed):
            rows = self.images.rows
            for indices, images in zip(
                batches, pixels.read([each if rows is None else rows[each] for each in batches]), strict=True
            ):
                index = upload(tensor_of(indices), self.device)
                yield upload(tensor_of(images), self.device), self.targets.index_select(0, index)
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
