"""Out-of-distribution detection: is an image like those that a model was trained on?

A network predicts a class for any image, and its features only keep what separates the classes: the features of a blank
image or of a truck may lie among those of cells. So there are two distances, one of the features before the head, and one
of simple statistics of the pixels (color, spread, gradients), which do not depend on training.

- Features: the Mahalanobis distance to the nearest class mean, with a covariance shared by all classes (Lee et al., 2018,
  arXiv:1807.03888) and shrunk (Ledoit and Wolf, 2004, Journal of Multivariate Analysis 88:365).
- Pixels: the negative log-density under a mixture of Gaussians, because augmented images form several clusters, such as
  dark, noisy and stained images.

The score is the larger of the two, each in units of its limit.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from petriscope.core.errors import RequestError
from petriscope.metrics.blocks import row_blocks
from petriscope.metrics.cutoffs import raised
from petriscope.models.layers import head_of, watching

INSIDE = 0.995  # share of val that is in distribution by definition
INSIDE_AUGMENTED = 0.95  # the same for augmented val images; with a higher share, shuffled pixels are not flagged
COMPONENTS, IMAGES_EACH = 16, 250  # largest number of mixture components, and images per component
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MOST = 256  # largest number of principal directions of the features
SIDE = 32  # approximate number of pixels per side that quantiles are computed from
DISTANCE_BYTES = 2**26  # of distances to all classes at a time
ALIKE = 1e-4  # relative difference of scores that rounding may make; float32 sums differ by about 1e-6
LARGEST = 1e18  # magnitude of features, so that their squares in units of the smallest spread are still numbers


def image_statistics(images: Tensor) -> Tensor:
    """Statistics of the pixels, float32 [B, S]; S is 25 for color and 8 for gray, and 7 C + C (C - 1) / 2 + 1 for
    C channels.

    They are the mean, standard deviation and quantiles per channel, the covariances between channels, and the logarithm of
    the mean absolute difference between neighboring pixels.

    Args:
        images: uint8 or uint16 [B, H, W, C].
    """
    wide = images.dtype == torch.uint16
    planes = images.permute(0, 3, 1, 2).contiguous()  # halves the time of all that follows, on a CPU
    x = planes.float() / (65535 if wide else 255)
    _, channels, height, width = x.shape
    step = max(1, min(height, width) // SIDE)
    some = planes[:, :, ::step, ::step].flatten(2)
    some = (some.int() + 128) // 257 if wide else some  # quantiles of 16 bits are those of the nearest of 256 levels
    chosen = _ranked(some, QUANTILES) / 255
    flat = x.flatten(2)
    mean = flat.mean(2)
    centered = flat - mean[..., None]
    covariance = centered @ centered.transpose(1, 2) / flat.shape[2]
    variance = covariance.flatten(1)[:, :: channels + 1]
    between = [covariance[:, channel, channel + 1 :] for channel in range(channels)]
    gray = x.mean(1)
    steps = [gray.diff(dim=axis).abs().flatten(1) for axis in (1, 2)]
    rough = torch.cat(steps, 1).sum(1) / max(1, sum(part.shape[1] for part in steps))
    spread = variance.clamp_min(0).sqrt()
    return torch.cat([mean, spread, chosen.flatten(1), *between, (rough + 1e-3).log()[:, None]], 1)


def _ranked(values: Tensor, shares: tuple[float, ...]) -> Tensor:
    """Quantiles of bytes, whole numbers [B, C, P] -> float32 [B, C, Q]: those of the values that are nearest in rank. Bytes are
    counted, because to sort them takes longer than a small network."""
    ranks = torch.tensor([round(share * (values.shape[2] - 1)) for share in shares], device=values.device)
    counts = torch.zeros((*values.shape[:2], 256), device=values.device)
    up_to = counts.scatter_add(2, values.long(), torch.ones_like(values, dtype=torch.float32)).cumsum(2)
    if torch.compiler.is_exporting():  # ONNX has no search
        return (up_to[:, :, None] <= ranks[:, None]).sum(3).float()
    wanted = ranks.to(up_to.dtype).expand(*up_to.shape[:2], -1).contiguous()
    return torch.searchsorted(up_to, wanted, right=True).float()


class Observer:
    """Records the features of images during prediction; see `observe`.

    Args:
        first: the input of the head for the first view of a batch, which is the unchanged image; None: nothing was predicted,
            or the model has no single module as its head.
    """

    def __init__(self) -> None:
        self.first: Tensor | None = None

    def note(self, module: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        """Forward hook: keep what `first` is."""
        if self.first is None and inputs:
            self.first = inputs[0].detach()

    def take(self, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """The features of the batch that was predicted last, float32 [B, D], and its `image_statistics`, float32 [B, S].

        D is 0 for models without a single module as their head.

        Args:
            images: the batch, uint8 [B, H, W, C].
        """
        found, self.first = features_of(self.first, images), None
        return found.cpu().numpy(), image_statistics(images).cpu().numpy()


def features_of(seen: Tensor | None, images: Tensor) -> Tensor:
    """The features, float32 [B, D], of images, [B, ...], from the input of a head, `Observer.first`. It may be spatial or
    tokens, [B, D, H, W] or [B, T, D]; these are averaged. D is 0 if there is none."""
    if seen is None:
        return images.new_zeros((images.shape[0], 0), dtype=torch.float32)
    found = seen.float()
    found = found.mean((2, 3)) if found.ndim == 4 else found.mean(1) if found.ndim == 3 else found
    return found.flatten(1)


@contextmanager
def observe(model: nn.Module) -> Iterator[Observer]:
    """Record the inputs of the head while the model predicts. Call ``take`` after each batch."""
    observer = Observer()
    with watching([model.get_submodule(name) for name in head_of(model)[:1]], observer.note):
        yield observer


@dataclass(frozen=True, eq=False)
class Mahalanobis:
    """Squared Mahalanobis distance to the nearest class mean.

    Args:
        centers: whitened class means, float32 [K, R].
        whiten: float32 [D, R]; the covariance of ``x @ whiten`` within a class is the identity.
        limit: the unit of `distance`.
    """

    centers: np.ndarray
    whiten: np.ndarray
    limit: float

    def distance(self, values: np.ndarray) -> np.ndarray:
        """float [N, D] -> float64 [N], in units of the limit; infinite for values that are not finite."""
        if not self.whiten.size:
            return np.zeros(len(values))
        points = torch.from_numpy(_bounded(values)) @ torch.from_numpy(self.whiten.astype(np.float64))
        centers, near = torch.from_numpy(self.centers.astype(np.float64)), np.empty(len(values))
        for rows in row_blocks(len(values), 8 * len(centers), DISTANCE_BYTES):
            near[rows] = torch.cdist(points[rows], centers).min(1).values.numpy() ** 2
        return _finite_only(values, near / self.limit)


def fit_mahalanobis(train: np.ndarray, targets: np.ndarray) -> Mahalanobis:
    """Fit the class means and the shared covariance.

    Args:
        train: float [N, D].
        targets: int64 [N].

    Returns:
        a distance with the limit 1.
    """
    from sklearn.covariance import ledoit_wolf

    train = _bounded(train)
    if not train.shape[1]:
        return Mahalanobis(np.zeros((1, 0), np.float32), np.zeros((0, 0), np.float32), 1.0)
    present, index = np.unique(targets, return_inverse=True)
    means = np.stack([train[index == k].mean(0) for k in range(len(present))])
    within = train - means[index]
    spread = _spread(within)
    covariance, _ = ledoit_wolf(within / spread)
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[-MOST:], vectors[:, -MOST:]  # ascending
    values = np.maximum(values, 1e-6 * values.max() + 1e-12)
    whiten = (vectors / np.sqrt(values)) / spread[:, None]
    return Mahalanobis((means @ whiten).astype(np.float32), whiten.astype(np.float32), 1.0)


@dataclass(frozen=True, eq=False)
class Mixture:
    """Distance from a mixture of Gaussians: twice the difference of the log-density from that of the highest peak. For a
    single Gaussian, this is the squared Mahalanobis distance.

    Args:
        centers: float32 [M, S].
        whiten: float32 [M, S, S]; ``(x - center) @ whiten`` has the identity as its covariance.
        height: log-density at each peak, up to a constant, float32 [M].
        limit: the unit of `distance`.
    """

    centers: np.ndarray
    whiten: np.ndarray
    height: np.ndarray
    limit: float

    def distance(self, values: np.ndarray) -> np.ndarray:
        """float [N, S] -> float64 [N], in units of the limit; infinite for values that are not finite."""
        points = _bounded(values)
        squares = [
            np.square((points - center) @ whiten).sum(1)
            for center, whiten in zip(self.centers.astype(np.float64), self.whiten.astype(np.float64), strict=True)
        ]
        logs = self.height.astype(np.float64) - np.stack(squares, 1) / 2
        below = 2 * (self.height.max() - np.logaddexp.reduce(logs, 1))
        return _finite_only(values, np.maximum(below, 0) / self.limit)


def fit_mixture(train: np.ndarray) -> Mixture:
    """Fit a mixture to train, float [N, S], by expectation maximization; its limit is 1."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    train = _bounded(train)
    mean, spread = train.mean(0), _spread(train)
    count = min(COMPONENTS, max(1, len(train) // IMAGES_EACH))
    # k-means, the default start, sums in the order in which threads finish, so its results are not reproducible.
    mixture = GaussianMixture(count, reg_covar=1e-3, random_state=0, init_params="k-means++", max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # an approximate fit is enough
        mixture.fit((train - mean) / spread)
    whiten = mixture.precisions_cholesky_
    height = np.log(mixture.weights_) + np.log(np.diagonal(whiten, axis1=1, axis2=2)).sum(1)
    centers, scaled = mean + spread * mixture.means_, whiten / spread[:, None]
    return Mixture(centers.astype(np.float32), scaled.astype(np.float32), height.astype(np.float32), 1.0)


def _bounded(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values.astype(np.float64), nan=LARGEST).clip(-LARGEST, LARGEST)


def _finite_only(values: np.ndarray, distance: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values).all(1), distance, np.inf)


def _quantile(distance: np.ndarray, share: float) -> float:
    """Of the distances that are finite; 0 if none is."""
    finite = distance[np.isfinite(distance)]
    return float(np.quantile(finite, share, method="higher")) if len(finite) else 0.0


def _spread(values: np.ndarray) -> np.ndarray:
    """Standard deviations, [D]. Values that are constant in training, such as dead units, get a small one instead of 0."""
    spread = values.std(0)
    return np.maximum(spread, max(1e-2 * float(np.median(spread)), 1e-6))


@dataclass(frozen=True, eq=False)
class Detector:
    """The out-of-distribution detector. Images with a score above 1 are out of distribution.

    Args:
        features: distance of the network's features.
        pixels: distance of the `image_statistics`.
        limit: the unit of `score`, for the larger of the two distances.
    """

    features: Mahalanobis
    pixels: Mixture | Mahalanobis  # Mahalanobis in older model files
    limit: float = 1.0

    def score(self, features: np.ndarray, statistics: np.ndarray) -> np.ndarray:
        """Features, float [N, D], and statistics, float [N, S] -> out-of-distribution scores, float32 [N]."""
        for part, values in ((self.features, features), (self.pixels, statistics)):
            if part.whiten.size and part.whiten.shape[-2] != values.shape[1]:
                raise RequestError(
                    f"the out-of-distribution detector of this model takes {part.whiten.shape[-2]} values of an image, not "
                    f"{values.shape[1]}; the model file is damaged"
                )
        larger = np.maximum(self.features.distance(features), self.pixels.distance(statistics))
        scores = larger / self.limit
        return np.where(np.isinf(scores), scores, np.minimum(scores, np.finfo(np.float32).max)).astype(np.float32)

    def widened(self, features: np.ndarray, statistics: np.ndarray) -> Detector:
        """A copy whose limits are raised, never lowered, until the share `INSIDE` of these images is in distribution.

        Args:
            features: float [N, D].
            statistics: float [N, S].
        """

        def reach(distance: np.ndarray) -> float:
            return max(1.0, _quantile(distance, INSIDE))

        of_features = reach(self.features.distance(features) / self.limit)
        of_pixels = reach(self.pixels.distance(statistics) / self.limit)
        apart = Detector(
            replace(self.features, limit=self.features.limit * of_features),
            replace(self.pixels, limit=self.pixels.limit * of_pixels),
            self.limit,
        )
        scores = apart.score(features, statistics)
        limit = reach(scores)
        if max(of_features, of_pixels, limit) == 1:
            return self
        return replace(apart, limit=apart.limit * _raised(scores, limit))


Seen = tuple[np.ndarray, np.ndarray]  # features [N, D] and statistics [N, S] of images


def fit_detector(
    train: Seen, targets: np.ndarray, val: Seen, augmented: Seen | None = None, inside: float = INSIDE
) -> Detector:
    """Fit the distances on train, and their limits on val.

    Args:
        train, val: features and statistics of images.
        targets: of the training images, int64 [N].
        augmented: the same for augmented val images, of which the share `INSIDE_AUGMENTED` is in distribution; None:
            training does not augment images.
        inside: share of val that is in distribution.
    """

    sets, shares = ([val], [inside]) if augmented is None else ([val, augmented], [inside, INSIDE_AUGMENTED])

    def limit(distances: list[np.ndarray]) -> float:
        return max(1e-12, *(_quantile(each, share) for each, share in zip(distances, shares, strict=True)))

    if len(targets) == 1:  # the spread of one image is that of two that are equal
        train, targets = (np.repeat(train[0], 2, 0), np.repeat(train[1], 2, 0)), np.repeat(targets, 2)
    features, pixels = fit_mahalanobis(train[0], targets), fit_mixture(train[1])
    whole = Detector(
        replace(features, limit=limit([features.distance(seen[0]) for seen in sets])),
        replace(pixels, limit=limit([pixels.distance(seen[1]) for seen in sets])),
    )
    # The two limits above are units alone; only this one is compared with.
    scores = [whole.score(*seen) for seen in sets]
    return replace(whole, limit=_raised(np.concatenate(scores), limit(scores)))


def _raised(scores: np.ndarray, limit: float) -> float:
    """The limit raised to between two scores that differ by more than rounding does: those of an image and of its augmented
    version may not."""
    return raised(scores, float(scores[scores <= limit * (1 + ALIKE)].max(initial=limit)))


def fit_pixels_by_folds(
    plain: np.ndarray, fold: np.ndarray, sample: np.ndarray, augmented: np.ndarray | None = None
) -> tuple[Detector, np.ndarray]:
    """A detector for a network that learned from all images: its features of these say nothing about those of new images, so
    it looks at pixels alone. Limits are such that images are in distribution by a fit without their fold.

    Args:
        plain: statistics of the images, float [N, S].
        fold: that holds out each image, int64 [N]; negative: none does.
        sample: rows that are fitted to, int64 [M].
        augmented: statistics of augmented versions of these, float [M, S]; None: training does not augment images.

    Returns:
        the detector, and the scores of the images by the fit without their fold, float32 [N]; 0 for those never held out.
    """

    def fitted(chosen: np.ndarray) -> Mixture:
        more = [] if augmented is None else [augmented[chosen]]
        return fit_mixture(np.concatenate([plain[sample[chosen]], *more]))

    of_plain = np.zeros(len(plain))
    of_augmented = np.zeros(0 if augmented is None else len(sample))
    for part in np.unique(fold[fold >= 0]):
        mixture = fitted(np.flatnonzero(fold[sample] != part))
        of_plain[fold == part] = mixture.distance(plain[fold == part])
        if augmented is not None:
            held = fold[sample] == part
            of_augmented[held] = mixture.distance(augmented[held])
    limit = _quantile(of_plain[fold >= 0], INSIDE)
    if augmented is not None:
        limit = max(limit, _quantile(of_augmented[fold[sample] >= 0], INSIDE_AUGMENTED))
    limit = max(limit, 1e-12)
    nothing = Mahalanobis(np.zeros((1, 0), np.float32), np.zeros((0, 0), np.float32), 1.0)
    whole = replace(fitted(np.arange(len(sample))), limit=limit)
    return Detector(nothing, whole), (of_plain / limit).astype(np.float32)
