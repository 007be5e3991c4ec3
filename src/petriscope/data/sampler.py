"""The order of the training images in an epoch, and how often each class and each domain is drawn."""

from __future__ import annotations

import numpy as np

from petriscope.core.recipe import Sampler


def epoch_order(
    targets: np.ndarray,
    sampler: Sampler,
    seed: int,
    epoch: int,
    size: int | None = None,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """The order of the images in one epoch. It depends only on the arguments, so there is no state to save.

    Args:
        targets: int64 [N], the class that each image counts as; see `ImageSet.strata`.
        sampler: ``none``: every image once. ``weighted``: N draws with replacement, every class equally likely.
            ``square-root``: likewise, but the probability of a class grows with the square root of its number of
            images, so that images of a very rare class are repeated less often (Mahajan et al., 2018,
            arXiv:1805.00932). ``oversample``: every image at least once, classes repeated up to the size of the largest.
        seed, epoch: each epoch has its own order.
        size: number of images in the epoch; None: as above. Images (with ``oversample``, those of each class, which
            then have equal shares) are repeated as often as needed or left out at random; none is drawn twice before
            all were drawn once.
        weights: how often each image is drawn relative to the others, above 0, float64 [N]; None: all alike. Classes are
            drawn as without weights (with ``square-root``, a class counts the weights of its images in place of their
            number), and the images of a class, or with ``none`` all images, in proportion to their weights. ``none`` and
            ``oversample`` draw no image of a weight twice before all of this weight were drawn once. M stays the same, so
            images of low weight are not in every epoch; over many epochs, they are drawn as often as their weight says.

    Returns:
        int64 [M], indices into ``targets``. M is ``size`` (with ``oversample`` rounded down to a multiple of the number
        of classes); without a size it is N, or more with ``oversample``.
    """
    rng = np.random.default_rng([seed, 1, epoch])
    weights = np.ones(len(targets)) if weights is None else weights
    if sampler in ("weighted", "square-root"):
        amounts = np.bincount(targets, weights)
        chance = weights * amounts[targets] ** (-1.0 if sampler == "weighted" else -0.5)
        return rng.choice(len(targets), size=size or len(targets), p=chance / chance.sum())
    if sampler == "none":
        return rng.permutation(_in_proportion(np.arange(len(targets)), size or len(targets), weights, rng))
    members = [np.flatnonzero(targets == label) for label in np.unique(targets)]
    each = max(map(len, members)) if size is None else max(1, size // len(members))
    return rng.permutation(np.concatenate([_in_proportion(part, each, weights[part], rng) for part in members]))


def _in_proportion(members: np.ndarray, size: int, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``size`` of the members, those of each weight in proportion to it and to their number.

    Shares are rounded up or down at random (systematic sampling: Madow, 1949, Annals of Mathematical Statistics 20:333), so
    that they are right on average. If they were rounded to the nearest, images of a share below 1/2 would never be drawn.

    Args:
        weights: of the members, float64 [n].
    """
    levels, place = np.unique(weights, return_inverse=True)
    reach = np.minimum(np.cumsum(size * levels * np.bincount(place) / weights.sum()), size)
    reach[-1] = size
    start = rng.spawn(1)[0].integers(2**28) / 2**28  # whose sums with whole numbers are exact
    counts = np.diff(np.floor(reach + start), prepend=0).astype(np.int64)
    return np.concatenate([_repeat(members[place == level], count, rng) for level, count in enumerate(counts.tolist())])


def _repeat(members: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """``size`` of the members: all of them as often as they fit, and some by chance."""
    repeats, rest = divmod(size, len(members))
    return np.concatenate([np.tile(members, repeats), rng.choice(members, size=rest, replace=False)])
