"""The order of the training images in an epoch, and how often each class is drawn."""

from __future__ import annotations

import numpy as np

from petriscope.core.recipe import Sampler


def epoch_order(targets: np.ndarray, sampler: Sampler, seed: int, epoch: int, size: int | None = None) -> np.ndarray:
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

    Returns:
        int64 [M], indices into ``targets``. M is ``size`` (with ``oversample`` rounded down to a multiple of the number
        of classes); without a size it is N, or more with ``oversample``.
    """
    rng = np.random.default_rng([seed, 1, epoch])
    if sampler in ("weighted", "square-root"):
        weight = np.bincount(targets)[targets] ** (-1.0 if sampler == "weighted" else -0.5)
        return rng.choice(len(targets), size=size or len(targets), p=weight / weight.sum())
    if sampler == "none":
        return rng.permutation(_repeat(np.arange(len(targets)), size or len(targets), rng))
    members = [np.flatnonzero(targets == label) for label in np.unique(targets)]
    each = max(map(len, members)) if size is None else max(1, size // len(members))
    return rng.permutation(np.concatenate([_repeat(part, each, rng) for part in members]))


def _repeat(members: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """``size`` of the members: all of them as often as they fit, and some by chance."""
    repeats, rest = divmod(size, len(members))
    return np.concatenate([np.tile(members, repeats), rng.choice(members, size=rest, replace=False)])
