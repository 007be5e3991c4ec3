"""Spectra of images, whitened by the statistics of their set."""

from __future__ import annotations

import numpy as np

from petriscope.audit.descriptors import (
    chunks,
    low_frequencies,
    orient_frequencies,
    possible_symmetries,
    shrink,
)
from petriscope.core.drawing import fit_within
from petriscope.data.imageset import ImageSet

LONGEST = 32  # pixels on the longer side of the thumbnails
LEAST_CONTRAST = 2.0  # gray levels; images that vary less show nothing
CLIP = 4.0  # robust standard deviations


class Spectra:
    """Low frequencies of images of one shape, as vectors: all frequencies of the luma, the lower half of those of color."""

    def __init__(self, height: int, width: int, channels: int) -> None:
        self.size = fit_within(height, width, LONGEST)
        self.frequencies = max(self.size)
        self.symmetries = possible_symmetries(height, width)[1:]
        kept = np.zeros((self.frequencies, self.frequencies, channels), bool)
        kept[: self.size[0], : self.size[1], 0] = True
        kept[: self.size[0] // 2, : self.size[1] // 2] = True
        kept[0, 0] = False
        self.shape, self.kept = kept.shape, np.flatnonzero(kept)

    def read(self, images: ImageSet | np.ndarray, indices: np.ndarray, quiet: bool) -> tuple[np.ndarray, np.ndarray]:
        """Spectra, float16 [n, D], and whether each image shows anything, bool [n]."""
        out = np.empty((len(indices), len(self.kept)), np.float16)
        for at, block in chunks(images, "reading images", quiet, indices):
            out[at] = self.of(block)
        return out, self.show(out)

    def of(self, block: np.ndarray) -> np.ndarray:
        """uint8 [B, H, W, C] -> float32 [B, D]."""
        return low_frequencies(shrink(block, self.size), self.frequencies).reshape(len(block), -1)[:, self.kept]

    def show(self, spectra: np.ndarray) -> np.ndarray:
        power = np.einsum("nd,nd->n", spectra, spectra, dtype=np.float32)
        return power > LEAST_CONTRAST**2 * self.size[0] * self.size[1]

    def turned(self, templates: np.ndarray, symmetry: int) -> np.ndarray:
        """Apply a symmetry to spectra [J, D]."""
        full = np.zeros((len(templates), int(np.prod(self.shape))), np.float32)
        full[:, self.kept] = templates
        turned = orient_frequencies(full.reshape(-1, *self.shape), symmetry)
        return turned.reshape(len(templates), -1)[:, self.kept]


class Flattening:
    """Scales every frequency to a robust standard deviation of 1 over a set, so that natural images become like noise.

    Args:
        spectra: float [n, D], from `Spectra.read`.

    Attributes:
        uniform: most images are identical, so there are no statistics to compare others with.
    """

    def __init__(self, spectra: np.ndarray) -> None:
        some = spectra[:: max(1, len(spectra) // 4096)].astype(np.float32)
        self.center = np.median(some, axis=0)
        spread = 1.4826 * np.median(np.abs(some - self.center), axis=0)
        self.uniform = bool(np.quantile(spread, 0.9) < 0.5)
        self.scale = np.sqrt(np.square(spread) + 1)  # at least the noise of one gray level

    def __call__(self, spectra: np.ndarray) -> np.ndarray:
        """float [n, D] -> float32 [n, D] of norm 1."""
        out = (spectra - self.center) / self.scale
        np.clip(out, -CLIP, CLIP, out=out)
        out /= np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-6)
        return out
