"""Is an image like those that were trained on at all?

A network answers whatever it is shown, and what it keeps of an image is what tells its classes apart: a blank image
or one of a truck may fall among the cells. So an image is measured twice, by the network's features before the head,
and by plain statistics of its pixels (color, spread, gradients), which no training has taught to ignore anything.
Features: the Mahalanobis distance to the nearest class, with a covariance that the classes share: Lee et al., 2018,
arXiv:1807.03888; shrunk as by Ledoit and Wolf, 2004, Journal of Multivariate Analysis 88:365. Pixels: how unlikely they
are under a mixture of Gaussians, because augmented images have no one shape: dark ones, noisy ones, stained ones. The
score is the larger of the two, each in units of its own limit.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from petriscope.models.layers import head_of, watching

INSIDE = 0.995  # share of val that is taken for like it
INSIDE_AUGMENTED = 0.95  # the same of val as training augments images; higher, shuffled pixels pass for cells
COMPONENTS, IMAGES_EACH = 16, 250  # of the mixture, at most; and images that each needs
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MOST = 256  # directions of the features that are kept, those in which the classes spread most
SIDE = 32  # pixels per side that quantiles are read from, about


def image_statistics(images: Tensor) -> Tensor:
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
    """Features of images, noted as a model answers them; see `observe`."""

    def __init__(self) -> None:
        self._first: Tensor | None = None

    def note(self, module: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        """Keep the input of the head, for the first view of a batch, which is the image itself."""
        if self._first is None and inputs:
            self._first = inputs[0].detach()

    def take(self, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """A batch is done, uint8 [B, H, W, C]: its features, float32 [B, D], and `image_statistics`, float32 [B, S].

        D is 0 for a model whose head is not one module that is called with them.
        """
        found = images.new_zeros((len(images), 0), dtype=torch.float32) if self._first is None else self._first.float()
        # A head that flattens sees places or tokens, [B, D, H, W] or [B, T, D], which say little of kinds.
        found = found.mean((2, 3)) if found.ndim == 4 else found.mean(1) if found.ndim == 3 else found
        self._first = None
        return found.flatten(1).cpu().numpy(), image_statistics(images).cpu().numpy()


@contextmanager
def observe(model: nn.Module) -> Iterator[Observer]:
    """Note what the head is given while the model answers; ``take`` is called after each batch."""
    observer = Observer()
    with watching([model.get_submodule(name) for name in head_of(model)[:1]], observer.note):
        yield observer


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


def fit_gauge(train: np.ndarray, targets: np.ndarray) -> Gauge:
    """Class means and covariance from train [N, D], with targets int64 [N]; of limit 1."""
    from sklearn.covariance import ledoit_wolf

    train = train.astype(np.float64)
    if not train.shape[1]:
        return Gauge(np.zeros((1, 0), np.float32), np.zeros((0, 0), np.float32), 1.0)
    present, index = np.unique(targets, return_inverse=True)
    means = np.stack([train[index == k].mean(0) for k in range(len(present))])
    within = train - means[index]
    spread = _spread(within)
    covariance, _ = ledoit_wolf(within / spread)
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[-MOST:], vectors[:, -MOST:]  # ascending
    values = np.maximum(values, 1e-6 * values.max() + 1e-12)
    whiten = (vectors / np.sqrt(values)) / spread[:, None]
    return Gauge((means @ whiten).astype(np.float32), whiten.astype(np.float32), 1.0)


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture of Gaussians: twice what a log density lies below the highest peak, which of a single Gaussian is the
    squared Mahalanobis distance.

    Args:
        centers: float32 [M, S].
        whiten: float32 [M, S, S]; ``(x - center) @ whiten`` has the identity as its covariance.
        height: logarithm of each peak, all with the same constant left out, float32 [M].
        limit: the distance that is the border.
    """

    centers: np.ndarray
    whiten: np.ndarray
    height: np.ndarray
    limit: float

    def distance(self, values: np.ndarray) -> np.ndarray:
        """float [N, S] -> float64 [N], in units of the limit; infinite for values that are not finite."""
        points = values.astype(np.float64)
        squares = [
            np.square((points - center) @ whiten).sum(1)
            for center, whiten in zip(self.centers.astype(np.float64), self.whiten.astype(np.float64), strict=True)
        ]
        logs = self.height.astype(np.float64) - np.stack(squares, 1) / 2
        with np.errstate(invalid="ignore"):  # of what is not finite
            below = 2 * (self.height.max() - np.logaddexp.reduce(logs, 1))
        return np.nan_to_num(np.maximum(below, 0) / self.limit, nan=np.inf, posinf=np.inf)


def fit_mixture(train: np.ndarray) -> Mixture:
    """From train [N, S], by expectation maximization; of limit 1."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    train = train.astype(np.float64)
    mean, spread = train.mean(0), _spread(train)
    count = min(COMPONENTS, max(1, len(train) // IMAGES_EACH))
    # k-means, sklearn's own start, sums in the order in which its threads are done: other bits every time.
    mixture = GaussianMixture(count, reg_covar=1e-3, random_state=0, init_params="k-means++", max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # nearly fitted is good enough
        mixture.fit((train - mean) / spread)
    whiten = mixture.precisions_cholesky_
    height = np.log(mixture.weights_) + np.log(np.diagonal(whiten, axis1=1, axis2=2)).sum(1)
    centers, scaled = mean + spread * mixture.means_, whiten / spread[:, None]
    return Mixture(centers.astype(np.float32), scaled.astype(np.float32), height.astype(np.float32), 1.0)


def _spread(values: np.ndarray) -> np.ndarray:
    """Standard deviations. What did not vary in training (a dead unit, a gray image's hue) is given a small one, not none."""
    spread = values.std(0)
    return np.maximum(spread, max(1e-2 * float(np.median(spread)), 1e-6))


@dataclass(frozen=True, eq=False)
class Detector:
    """How unlike the training images an image is: above 1, unlike anything seen.

    Args:
        features, pixels: of the network's features, and of `image_statistics`.
        limit: of the larger of the two; `score` is in its units.
    """

    features: Gauge
    pixels: Mixture | Gauge  # a gauge in model files of before there was a mixture
    limit: float = 1.0

    def score(self, features: np.ndarray, statistics: np.ndarray) -> np.ndarray:
        """float [N, D] and [N, S] -> float32 [N]."""
        larger = np.maximum(self.features.distance(features), self.pixels.distance(statistics))
        return (larger / self.limit).astype(np.float32)

    def widened(self, features: np.ndarray, statistics: np.ndarray) -> Detector:
        """Its limits moved out, never in, until the share `INSIDE` of these images is taken for like those seen."""

        def reach(distance: np.ndarray) -> float:
            finite = distance[np.isfinite(distance)]
            return max(1.0, float(np.quantile(finite, INSIDE, method="higher"))) if len(finite) else 1.0

        apart = Detector(
            replace(self.features, limit=self.features.limit * reach(self.features.distance(features) / self.limit)),
            replace(self.pixels, limit=self.pixels.limit * reach(self.pixels.distance(statistics) / self.limit)),
            self.limit,
        )
        return replace(apart, limit=apart.limit * reach(apart.score(features, statistics)))


Seen = tuple[np.ndarray, np.ndarray]  # features [N, D] and statistics [N, S] of images


def fit_detector(
    train: Seen, targets: np.ndarray, val: Seen, augmented: Seen | None = None, inside: float = INSIDE
) -> Detector:
    """From train images with their targets, int64 [N], and those of val, of which the share ``inside`` is taken for like
    the training images; and, where training augments images, `INSIDE_AUGMENTED` of val ``augmented`` so."""

    shares = [(val, inside)] if augmented is None else [(val, inside), (augmented, INSIDE_AUGMENTED)]

    def limit(distance: Callable[[Seen], np.ndarray]) -> float:
        return max(1e-12, *(float(np.quantile(distance(seen), share, method="higher")) for seen, share in shares))

    features, pixels = fit_gauge(train[0], targets), fit_mixture(train[1])
    whole = Detector(
        replace(features, limit=limit(lambda seen: features.distance(seen[0]))),
        replace(pixels, limit=limit(lambda seen: pixels.distance(seen[1]))),
    )
    return replace(whole, limit=limit(lambda seen: whole.score(*seen)))
