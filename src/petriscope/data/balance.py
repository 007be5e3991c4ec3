"""In what order an epoch goes through the training pictures, and how often it sees each class."""

from __future__ import annotations

from typing import Literal

import numpy as np

Balance = Literal["none", "weighted-sampler", "oversample"]


def epoch_order(targets: np.ndarray, balance: Balance, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch, a function of its arguments alone: no state to save, none to lose.

    Args:
        targets: int64 [N].
        balance: ``none``: every picture once. ``weighted-sampler``: N draws with replacement, every class equally
            likely. ``oversample``: every picture at least once, classes repeated up to the largest.
        seed, epoch: another epoch is another order.

    Returns:
        int64 [M], indices into ``targets``; M is N but for ``oversample``.
    """
    rng = np.random.default_rng([seed, 1, epoch])
    if balance == "none":
        return rng.permutation(len(targets))
    counts = np.bincount(targets)
    if balance == "weighted-sampler":
        weight = 1.0 / counts[targets]
        return rng.choice(len(targets), size=len(targets), p=weight / weight.sum())
    parts = []
    for label in np.flatnonzero(counts):
        members = np.flatnonzero(targets == label)
        repeats, rest = divmod(int(counts.max()), len(members))
        parts += [np.tile(members, repeats), rng.choice(members, size=rest, replace=False)]
    return rng.permutation(np.concatenate(parts))
