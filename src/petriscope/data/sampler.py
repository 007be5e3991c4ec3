"""In what order an epoch goes through the training images, and how often it sees each class."""

from __future__ import annotations

import numpy as np

from petriscope.core.recipe import Balance


def epoch_order(targets: np.ndarray, balance: Balance, seed: int, epoch: int, size: int | None = None) -> np.ndarray:
    """The order of one epoch, a function of its arguments alone: no state to save, none to lose.

    Args:
        targets: int64 [N], what each image counts as: its label; of a mask, its rarest class (`ImageSet.strata`).
        balance: ``none``: every image once. ``weighted-sampler``: N draws with replacement, every class equally
            likely. ``square-root-sampler``: likewise, but a class as likely as the square root of its images, so that
            those of a very rare class are repeated less often (Mahajan et al., 2018, arXiv:1805.00932). ``oversample``:
            every image at least once, classes repeated up to the largest.
        seed, epoch: another epoch is another order.
        size: images in the epoch; None: as above. Images (``oversample``: of each class, which then have equal
            shares) are repeated as often as is needed, or are left out by chance, none twice before all were once.

    Returns:
        int64 [M], indices into ``targets``; M is ``size`` (less what classes cannot share evenly), or N but for
        ``oversample``.
    """
    rng = np.random.default_rng([seed, 1, epoch])
    if balance in ("weighted-sampler", "square-root-sampler"):
        weight = np.bincount(targets)[targets] ** (-1.0 if balance == "weighted-sampler" else -0.5)
        return rng.choice(len(targets), size=size or len(targets), p=weight / weight.sum())
    if balance == "none":
        return rng.permutation(_repeat(np.arange(len(targets)), size or len(targets), rng))
    members = [np.flatnonzero(targets == label) for label in np.unique(targets)]
    each = max(map(len, members)) if size is None else max(1, size // len(members))
    return rng.permutation(np.concatenate([_repeat(part, each, rng) for part in members]))


def _repeat(members: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """``size`` of the members: all of them as often as they fit, and some by chance."""
    repeats, rest = divmod(size, len(members))
    return np.concatenate([np.tile(members, repeats), rng.choice(members, size=rest, replace=False)])
