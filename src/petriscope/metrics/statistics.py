"""Paired tests of differences between methods, over the same images and over several seeds.

There are two sources of variance: the draw of the images, and the seed that a network was trained with. The bootstrap over
images estimates the first, the spread over a method's seeds the second. Tests of a difference take both into account.

Images of one group, such as the cells of one slide, are not independent. Where there are groups, the bootstrap draws groups,
and tests are over groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy.special import bdtr, ndtri, stdtr, stdtrit

from petriscope.metrics.blocks import row_blocks
from petriscope.metrics.classification import ClassCounts, from_counts
from petriscope.metrics.intervals import bootstrap_weights, count_groups, percentile95, proportion95, sum_by, wilson
from petriscope.metrics.segmentation import counted_mean_iou

LabelMetric = Literal["accuracy", "balanced_accuracy", "macro_f1"]
METRICS: tuple[LabelMetric, ...] = get_args(LabelMetric)
RESAMPLES = 5000
MOST_SEEDS = 1000  # per method; more are never recommended
MANY = 1e9  # degrees of freedom if all seeds give the same value
FLIPS = 10_000  # of the signs of groups, in a test
MOST_EXACT = 13  # groups that differ, of which all flips are counted


@dataclass(frozen=True, eq=False)
class Sample:
    """A metric of S networks over the same N images, and over R bootstrap resamples of these images.

    Networks of one `resample` call share the resamples, so that their differences are paired.

    Args:
        metric: its name; a share, 0 to 1.
        right: whether each prediction is right, bool [S, N]; all False for segmentation, where it is not used.
        values: float [S].
        draws: the metric in each resample, float [S, R].
        index: groups of the images, int64 [N], as `petriscope.metrics.intervals.group_index` has them; None: images are
            independent.
    """

    metric: str
    right: np.ndarray
    values: np.ndarray
    draws: np.ndarray
    index: np.ndarray | None = None

    def __getitem__(self, networks: slice | Sequence[int]) -> Sample:
        index = networks if isinstance(networks, slice) else list(networks)
        return Sample(self.metric, self.right[index], self.values[index], self.draws[index], self.index)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def images(self) -> int:
        return self.right.shape[1]

    @property
    def groups(self) -> int | None:
        """The number of groups; None: images are independent."""
        return None if self.index is None else count_groups(self.index)

    @property
    def largest_group(self) -> int | None:
        """Images of the largest group; None: images are independent."""
        return None if self.index is None else int(np.bincount(self.index).max())

    @property
    def units(self) -> int:
        """How many independent parts there are: groups, or images."""
        return self.images if self.groups is None else self.groups

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def sd(self) -> float | None:
        """Standard deviation over the seeds; None for a single seed."""
        return float(self.values.std(ddof=1)) if len(self) > 1 else None

    @property
    def ci95(self) -> tuple[float, float]:
        """95 % interval of the mean over seeds, for new images and new seeds.

        NaN if the images are one group. For one network, it covers new images only: Wilson's interval for accuracy (see
        `petriscope.metrics.intervals.proportion95`), percentiles of the bootstrap for other metrics. For several networks,
        it is Wilson's interval with Student's quantile and the number of images that would give the same standard error
        (the effective sample size of survey statistics; Dean and Pagano, 2015, Journal of Survey Statistics and Methodology
        3:484), so that it stays within 0 and 1.
        """
        if len(self) == 1:
            if self.metric == "accuracy":
                return proportion95(self.right[0], self.index)
            return percentile95(self.draws[0])
        if not self.draws.size:
            return math.nan, math.nan
        variance = _variance((self,), float(self.draws.mean(0).var()))
        most = len(self) * self.images
        effective = min(self.mean * (1 - self.mean) / variance.total, most) if variance.total > 0 else 0.0
        effective = max(1, round(effective)) if 0 < self.mean < 1 else self.units
        return wilson(self.mean * effective, effective, variance.quantile(0.975))


@dataclass(frozen=True)
class Needed:
    """Sample sizes at which a difference of the observed size would be significant.

    Args:
        images: with the present number of seeds; None: more images alone are not enough.
        seeds: per method, with the present images; None: more seeds alone are not enough, up to `MOST_SEEDS`.
    """

    images: int | None
    seeds: int | None


@dataclass(frozen=True)
class Difference:
    """A method's metric minus the baseline's.

    Args:
        value: the difference of the means over seeds.
        ci95: 95 % interval for new images, and for new seeds if a method has several; NaN if the images are one group.
        p: two-sided p-value of the hypothesis that there is no difference; 1 if the images are one group.
        variance: the components of its squared standard error.
        images: number of images.
        seeds: number of seeds of the method that has more.
    """

    value: float
    ci95: tuple[float, float]
    p: float
    variance: Variance
    images: int
    seeds: int

    def needed(self, alpha: float = 0.05, power: float = 0.8) -> Needed:
        """The number of images, or of seeds, at which a two-sided test at level ``alpha`` detects a difference of this size
        with this power.

        The standard error has to fall to ``|value| / (t + z)``, where t and z are the quantiles of 1 - alpha / 2 and of
        the power. For accuracy and one network per method, this is Connor's sample size for McNemar's test (1987,
        Biometrics 43:207) with the observed variance in place of the variance under the null hypothesis.
        """
        if self.value == 0:
            return Needed(None, None)
        found, z = self.variance, float(ndtri(power))
        wanted = (self.value / (found.quantile(1 - alpha / 2) + z)) ** 2
        images = None
        if wanted > found.seeds:
            images = max(math.ceil(self.images * found.images / (wanted - found.seeds)), 1)

        def shows(seeds: int) -> bool:
            more = found.with_seeds(self.seeds, seeds)
            return abs(self.value) >= (more.quantile(1 - alpha / 2) + z) * math.sqrt(more.total)

        return Needed(images, _first(shows, self.seeds) if self.seeds > 1 else None)


@dataclass(frozen=True)
class Variance:
    """Components of the squared standard error of a mean over seeds, or of the difference of two such means.

    Args:
        images: from the draw of images, for given networks; proportional to 1 / images.
        seeds: from the seeds; proportional to 1 / seeds.
        shared: the part of ``images`` that all seeds have in common, which more seeds do not lower.
        freedom: degrees of freedom of the total; infinite for single networks over independent images.
    """

    images: float
    seeds: float
    shared: float
    freedom: float

    @property
    def total(self) -> float:
        return self.images + self.seeds

    def with_seeds(self, now: int, then: int) -> Variance:
        """The variance with ``then`` seeds, if it was estimated with ``now`` seeds, more than one."""
        rest = (self.total - self.shared) * now / then
        freedom = self.freedom * (then - 1) / (now - 1)
        return Variance(self.shared, rest, self.shared, freedom)

    def quantile(self, p: float) -> float:
        return float(stdtrit(self.freedom, p)) if math.isfinite(self.freedom) else float(ndtri(p))


def _first(shows: Callable[[int], bool], start: int) -> int | None:
    """The smallest number from ``start`` on for which ``shows`` is true, if it stays true for all larger numbers; None: it is
    above `MOST_SEEDS`."""
    if not shows(MOST_SEEDS):
        return None
    low, high = start, MOST_SEEDS
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if shows(middle) else (middle + 1, high)
    return low


def resample(
    predicted: np.ndarray,
    targets: np.ndarray,
    classes: int,
    metric: str = "accuracy",
    resamples: int = RESAMPLES,
    seed: int = 0,
    index: np.ndarray | None = None,
) -> Sample:
    """A metric of P networks, and its bootstrap over images with the same resamples for all networks. Efron, 1979.

    Args:
        predicted: predicted classes, int64 [P, N].
        targets: int64 [N].
        classes: K.
        metric: one of `METRICS`.
        index: groups of the images, which the bootstrap draws, int64 [N], as `petriscope.metrics.intervals.group_index` has
            them; None: it draws images.
    """
    right = predicted == targets
    weights = bootstrap_weights(len(targets), resamples, seed, index=index)
    none = np.empty((len(predicted), 0))
    if metric == "accuracy":
        share = right.T / len(targets)
        draws = [((w @ share).T * (len(targets) / w.sum(1))) for w in weights]
        return Sample(metric, right, right.mean(1), np.concatenate([none, *draws], axis=1), index)
    counts = [ClassCounts(targets, row, classes) for row in predicted]
    ones = np.ones((1, len(targets)))
    values = np.array([from_counts(*c(ones))[metric][0] for c in counts])
    draws = [np.stack([from_counts(*c(w))[metric] for c in counts]) for w in weights]
    return Sample(metric, right, values, np.concatenate([none, *draws], axis=1), index)


def resample_miou(counts: np.ndarray, scenes: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Sample:
    """Mean IoU of P networks, and its bootstrap over scenes with the same resamples for all networks.

    Args:
        counts: pixels per image and class, int64 [P, N, K, 3]; see `petriscope.metrics.segmentation.class_counts`.
        scenes: the scene of each image, strings or integers [N]; images of one scene are drawn together.
    """
    networks, images = counts.shape[:2]
    _, place = np.unique(scenes, return_inverse=True)
    sums = sum_by(place, counts.swapaxes(0, 1))
    drawn = [counted_mean_iou(np.tensordot(w, sums, 1)) for w in bootstrap_weights(len(sums), resamples, seed)]
    draws = np.concatenate([np.empty((0, networks)), *drawn]).T
    # Mean IoU is undefined for all networks in resamples that have no labeled pixel.
    draws = draws[:, np.isfinite(draws).all(0)]
    right = np.zeros((networks, images), dtype=bool)
    return Sample("miou", right, counted_mean_iou(sums.sum(0)), draws, place if len(sums) < images else None)


def difference(method: Sample, baseline: Sample) -> Difference:
    """Compare a method with a baseline over the same images.

    For accuracy and one network each, p is McNemar's, or with groups, that of `sign_flips`. Otherwise it is Student's, with
    the standard error from the images or groups (paired bootstrap) and from the seeds; see `Variance`. The interval is
    symmetric. 1 / N squared is added to the variance, which corresponds to half an image in every cell (Agresti and Min,
    2005, Statistics in Medicine 24:729); without it, the interval of networks that agree on all images would have no width.

    Raises:
        ValueError: the samples differ in their metric or their images.
    """
    if method.metric != baseline.metric or method.images != baseline.images:
        raise ValueError("a difference needs two samples of the same metric over the same images")
    value = method.mean - baseline.mean
    if method.units < 2:
        nothing = Variance(math.nan, math.nan, math.nan, math.inf)
        return Difference(value, (math.nan, math.nan), 1.0, nothing, method.images, max(len(method), len(baseline)))
    over_images = float((method.draws.mean(0) - baseline.draws.mean(0)).var())
    variance = _variance((method, baseline), over_images + 1 / method.images**2)
    reach = variance.quantile(0.975) * math.sqrt(variance.total)
    if method.metric == "accuracy" and len(method) == len(baseline) == 1:
        first, second = method.right[0], baseline.right[0]
        p = mcnemar(first, second) if method.index is None else sign_flips(first, second, method.index)
    else:
        p = _two_sided(value / math.sqrt(variance.total), variance.freedom)
    low, high = max(value - reach, -1.0), min(value + reach, 1.0)
    return Difference(value, (low, high), p, variance, method.images, max(len(method), len(baseline)))


def _variance(samples: Sequence[Sample], over_images: float) -> Variance:
    """Add the variance from the seeds to ``over_images``, the variance from the draw of images.

    The spread over seeds contains the variance from the seeds and an interaction of seeds and images. The bootstrap over
    images contains the same interaction (how the seeds deviate from their mean), so it is subtracted once: these are the
    variance components of a study with random readers and random cases. Gallas, 2006, Academic Radiology 13:353. The
    degrees of freedom are Satterthwaite's, 1946, Biometrics Bulletin 2:110. A method with one seed is assumed to vary as
    the other method does. The variance over G groups has G - 1 degrees of freedom, and the bootstrap, which gives
    (G - 1) / G of it, is corrected.
    """
    several = [sample for sample in samples if len(sample) > 1]
    groups = samples[0].groups
    if groups is not None:
        over_images *= groups / (groups - 1)
    if not several:
        return Variance(over_images, 0.0, over_images, math.inf if groups is None else groups - 1)
    single = len(samples) - len(several)
    spread = np.array([s.values.var(ddof=1) for s in several])
    own = np.array([(s.draws - s.values[:, None]).var(axis=0, ddof=1).mean() for s in several])
    freedom = np.array([len(s) - 1 for s in several])
    share = np.array([1 / len(s) for s in several]) + single / len(several)
    seeds = max(0.0, float((share * (spread - own)).sum()))
    shared = max(0.0, over_images - float((share * own).sum()))
    total = over_images + seeds
    parts = float(((share * spread) ** 2 / freedom).sum())
    if groups is not None:
        parts += over_images**2 / (groups - 1)
    return Variance(over_images, seeds, shared, total**2 / parts if parts > 0 else MANY)


def _two_sided(t: float, freedom: float) -> float:
    below = stdtr(freedom, -abs(t)) if math.isfinite(freedom) else 0.5 * math.erfc(abs(t) / math.sqrt(2))
    return min(1.0, 2 * float(below))


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided p-value of McNemar's exact test that two networks are right equally often. McNemar, 1947, Psychometrika
    12:153.

    Under the null hypothesis, each image that only one network got right is equally likely to belong to either network, so
    that the counts are binomial.

    Args:
        first, second: whether each prediction is right, bool [N].
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    return min(1.0, 2 * float(bdtr(min(only_first, only_second), only_first + only_second, 0.5)))


def sign_flips(first: np.ndarray, second: np.ndarray, index: np.ndarray) -> float:
    """Two-sided p-value of the hypothesis that two networks are right equally often, over groups: Fisher's permutation test
    for pairs (1935, The Design of Experiments, section 21).

    Under the null hypothesis, the networks can be exchanged in each group, which flips the sign of the group's difference.
    All flips are counted if at most `MOST_EXACT` groups differ, else `FLIPS` of them are drawn. If every image is a group,
    this is McNemar's test.

    Args:
        first, second: whether each prediction is right, bool [N].
        index: groups of the images, int64 [N].
    """
    gains = sum_by(index, first.astype(float) - second)
    gains = gains[gains != 0]
    if len(gains) <= MOST_EXACT:
        flips = np.arange(2 ** len(gains))[:, None] >> np.arange(len(gains)) & 1
        return float((np.abs((1 - 2 * flips) @ gains) >= abs(gains.sum())).mean())
    rng, beyond = np.random.default_rng(0), 1
    for rows in row_blocks(FLIPS - 1, 8 * len(gains)):
        signs = rng.choice((-1.0, 1.0), (rows.stop - rows.start, len(gains)))
        beyond += int((np.abs(signs @ gains) >= abs(gains.sum())).sum())
    return beyond / FLIPS


def holm(p: Sequence[float]) -> list[float]:
    """p-values after Holm's correction for multiple tests, in the order given. Holm, 1979, Scandinavian Journal of
    Statistics 6:65.

    It controls the probability of any false positive, for any dependence between the tests.
    """
    order = sorted(range(len(p)), key=lambda i: p[i])
    out, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, p[i] * (len(p) - rank)))
        out[i] = highest
    return out
