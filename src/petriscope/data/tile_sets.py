"""Image sets whose images are larger than what a model sees at a time: random crops for training, and a tile of each image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from petriscope.core.device import tensor_of, upload
from petriscope.core.masks import IGNORE
from petriscope.core.progress import progress
from petriscope.core.recipe import DataSection, TilesSection
from petriscope.data.batches import Batches
from petriscope.data.imageset import ImageSet
from petriscope.data.membership import pack
from petriscope.data.tiles import blended, cut

LEAST = 1e-12  # probability, so that its logarithm is a number


class TileBatches(Batches):
    """Crops of the images of a set with masks. They are cut on the host, each when it is needed.

    Where `Batches` takes indices of images, this takes places, int64 [B, 3]: an image, and the top and left of a crop in it.
    """

    def __init__(self, images: ImageSet, device: torch.device, tiles: TilesSection) -> None:
        self.images, self.device, self.tiles = images, device, tiles
        self._resident = None

    def take(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """uint8 [B, h, w, C] and masks, uint8 [B, h, w], at ``indices``: places, int64 [B, 3]."""
        size = self.tiles.height_width
        crops, masks = [], []
        for row, top, left in np.asarray(indices).tolist():
            height, width = self.images.extent(row)
            crops.append(cut(self.images.window(row, top, left, size), 0, 0, size))
            masks.append(cut(self.images.targets[row, :height, :width], top, left, size, IGNORE))
        return upload(tensor_of(np.stack(crops)), self.device), upload(tensor_of(np.stack(masks)), self.device)

    def predict_each(
        self, predict: Callable[[np.ndarray], np.ndarray], label: str | None = None
    ) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """Predict image by image in its own size, from overlapping tiles.

        Args:
            predict: tiles, uint8 [B, h, w, C] -> probabilities, float32 [B, K, h, w].
            label: of the progress bar; None: no progress is shown.

        Yields:
            the index of an image, int64 [1], its log-probabilities, float32 [1, K, H, W], and its mask, uint8 [1, H, W], on the
            CPU.
        """
        images, tiles = self.images, self.tiles
        with progress(label or "", len(images)) as bar:
            for row in range(len(images)):
                height, width = images.extent(row)
                parts = blended(predict, images.window(row), tiles.height_width, tiles.overlap, len(images.classes))
                p = np.concatenate([part for _, part in parts], axis=1)
                mask = np.ascontiguousarray(images.targets[row, :height, :width])
                yield np.array([row]), torch.from_numpy(p).clamp_min_(LEAST).log_()[None], tensor_of(mask)[None]
                if label:
                    bar.advance(1)


def batches_of(images: ImageSet, device: torch.device, section: DataSection) -> Batches:
    """The batches of a set that is read as a recipe says."""
    if section.tiles is not None:
        return TileBatches(images, device, section.tiles)
    return Batches(images, device, section.memory)


def crops_per_image(images: ImageSet, size: tuple[int, int]) -> np.ndarray:
    """How many crops of a size cover the area of each image, rounded, at least 1; int64 [N]."""
    return np.maximum(np.rint(images.extents.prod(1) / (size[0] * size[1])), 1).astype(np.int64)


def draw_places(images: ImageSet, rows: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A random crop in each of the images at ``rows``, int64 [M, 3]: the row, and the top and left of the crop."""
    room = np.maximum(images.extents[rows] - size, 0)
    corners = (rng.random((len(rows), 2)) * (room + 1)).astype(np.int64)
    return np.concatenate([np.asarray(rows, dtype=np.int64)[:, None], corners], axis=1)


def one_tile_each(images: ImageSet, section: DataSection) -> ImageSet:
    """Where images have their own sizes: a set of one tile of each of them, at a place drawn from a fixed seed, for what takes
    images of one size. Digests stay those of the whole images. Else the set itself."""
    if section.tiles is None:
        return images
    places = draw_places(images, np.arange(len(images)), section.tiles.height_width, np.random.default_rng(0))
    tiles, masks = TileBatches(images, torch.device("cpu"), section.tiles).take(places)
    pixels = tiles.numpy()
    known = (pixels, pack(images.digests()))
    return replace(images, pixels=pixels, targets=masks.numpy(), rows=None, known=known, sizes=None, padded=False)
