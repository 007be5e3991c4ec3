"""Is a picture like those that were trained on at all?

A network answers whatever it is shown, and what it keeps of a picture is what tells its classes apart: a blank picture
or one of a truck may fall among the cells. So a picture is measured twice, by the network's features before the head,
and by plain statistics of its pixels (color, spread, gradients), which no training has taught to ignore anything. Each
is a Mahalanobis distance to the nearest class, with a covariance that the classes share: Lee et al., 2018,
arXiv:1807.03888; shrunk as by Ledoit and Wolf, 2004, Journal of Multivariate Analysis 88:365. The score is the larger
of the two, each in units of its own limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from petriscope.models.layers import head_of

INSIDE = 0.995  # share of val that is taken for like it
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MOST = 256  # directions of the features that are kept, those in which the classes spread most
SIDE = 32  # pixels a side that quantiles are read from, about


def picture_statistics(images: Tensor) -> Tensor:
    """What pixels say without a network, float32 [B, S], S 25 for color and 8 for gray.

    Mean, standard deviation and quantiles of each channel, covariances of channels, and the logarithm of the mean
    absolute difference between neighbors.

    Args:
        images: uint8 [B, H, W, C].
    """
    x = images.permute(0, 3, 1, 2).float() / 255
    _, channels, height, width = x.shape
    step = max(1, min(height, width) // SIDE)
    sparse = x[:, :, ::step, ::step].flatten(2).sort(2).values
    at = [round(q * (sparse.shape[2] - 1)) for q in QUANTILES]
    flat = x.flatten(2)
    mean = flat.mean(2)
    centered = flat - mean[..., None]
    covariance = centered @ centered.transpose(1, 2) / flat.shape[2]
    rows, columns = torch.triu_indices(channels, channels, 1)
    spread = covariance.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    gray = x.mean(1)
    steps = [gray.diff(dim=axis).abs().flatten(1) for axis in (1, 2)]
    rough = torch.cat(steps, 1).sum(1) / max(1, sum(part.shape[1] for part in steps))
    return torch.cat(
        [mean, spread, sparse[:, :, at].flatten(1), covariance[:, rows, columns], (rough + 1e-3).log()[:, None]], 1
    )


class Observer:
    """Features of pictures, noted as a model answers them; see `observe`."""

    def __init__(self) -> None:
        self._first: Tensor | None = None

    def note(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """The head is called: keep what it is given, of the first view of a batch, which is the picture as it is."""
        if self._first is None and inputs:
            self._first = inputs[0].detach()

    def take(self, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """A batch is done, uint8 [B, H, W, C]: its features, float32 [B, D], and `picture_statistics`, float32 [B, S].

        D is 0 for a model whose head is not one module that is called with them.
        """
        found = images.new_zeros((len(images), 0), dtype=torch.float32) if self._first is None else self._first.float()
        # A head that flattens sees places or tokens, [B, D, H, W] or [B, T, D], which say little of kinds.
        found = found.mean((2, 3)) if found.ndim == 4 else found.mean(1) if found.ndim == 3 else found
        self._first = None
        return found.flatten(1).cpu().numpy(), picture_statistics(images).cpu().numpy()


@contextmanager
def observe(model: nn.Module) -> Iterator[Observer]:
    """Note what the head is given while the model answers; ``take`` is called after each batch."""
    observer, modules = Observer(), dict(model.named_modules())
    heads = [modules[name] for name in head_of(model) if name in modules]
    handle = heads[0].register_forward_pre_hook(observer.note) if heads else None
    try:
        yield observer
    finally:
        if handle is not None:
            handle.remove()


@dataclass(frozen=True, eq=False)
class Gauge:
    """Squared Mahalanobis distance to the nearest class.

    Args:
        centers: whitened class means, float32 [K, R].
        whiten: float32 [D, R]; differences of ``x @ whiten`` have the identity as their covariance.
        limit: the distance that is the border.
    """

    centers: np.ndarray
    whiten: np.ndarray
    limit: float

    def distance(self, values: np.ndarray) -> np.ndarray:
        """float [N, D] -> float64 [N], in units of the limit; infinite for values that are not finite."""
        if not self.whiten.size:
            return np.zeros(len(values))
        points = torch.from_numpy(values.astype(np.float64)) @ torch.from_numpy(self.whiten.astype(np.float64))
        near = torch.cdist(points, torch.from_numpy(self.centers.astype(np.float64))).min(1).values ** 2
        return np.nan_to_num(near.numpy() / self.limit, nan=np.inf, posinf=np.inf)


def fit_gauge(train: np.ndarray, targets: np.ndarray, val: np.ndarray, inside: float = INSIDE) -> Gauge:
    """Class means and covariance from train [N, D], the limit from val [M, D]."""
    from sklearn.covariance import ledoit_wolf

    train = train.astype(np.float64)
    if not train.shape[1]:
        return Gauge(np.zeros((1, 0), np.float32), np.zeros((0, 0), np.float32), 1.0)
    present, index = np.unique(targets, return_inverse=True)
    means = np.stack([train[index == k].mean(0) for k in range(len(present))])
    within = train - means[index]
    spread = within.std(0)
    # What did not vary in training (a dead unit, a gray picture's hue) is given a small spread, not none.
    spread = np.maximum(spread, max(1e-2 * float(np.median(spread)), 1e-6))
    covariance, _ = ledoit_wolf(within / spread)
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[-MOST:], vectors[:, -MOST:]  # ascending
    values = np.maximum(values, 1e-6 * values.max() + 1e-12)
    whiten = (vectors / np.sqrt(values)) / spread[:, None]
    gauge = Gauge((means @ whiten).astype(np.float32), whiten.astype(np.float32), 1.0)
    limit = float(np.quantile(gauge.distance(val), inside, method="higher"))
    return Gauge(gauge.centers, gauge.whiten, max(limit, 1e-12))


@dataclass(frozen=True, eq=False)
class Detector:
    """How unlike the training pictures a picture is: above 1, unlike anything seen.

    Args:
        features, pixels: gauges of the network's features and of `picture_statistics`.
        limit: of the larger of the two; `score` is in its units.
    """

    features: Gauge
    pixels: Gauge
    limit: float = 1.0

    def score(self, features: np.ndarray, statistics: np.ndarray) -> np.ndarray:
        """float [N, D] and [N, S] -> float32 [N]."""
        larger = np.maximum(self.features.distance(features), self.pixels.distance(statistics))
        return (larger / self.limit).astype(np.float32)


def fit_detector(
    train: tuple[np.ndarray, np.ndarray],
    targets: np.ndarray,
    val: tuple[np.ndarray, np.ndarray],
    inside: float = INSIDE,
) -> Detector:
    """From features [N, D] and statistics [N, S] of train pictures with their targets, int64 [N], and those of val, of
    which the share ``inside`` is taken for like the training pictures."""
    parts = [fit_gauge(train[i], targets, val[i], inside) for i in (0, 1)]
    limit = float(np.quantile(Detector(parts[0], parts[1]).score(*val), inside, method="higher"))
    return Detector(parts[0], parts[1], limit)
