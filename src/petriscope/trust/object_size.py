"""The scale that brings objects to the size that a model knows, estimated from what val is like."""

from __future__ import annotations

import numpy as np

from petriscope.core.errors import RequestError
from petriscope.core.results import ScaleEstimate
from petriscope.trust.two_sample import Likeness, quantiles

FEWEST = 20  # images with an object, on either side
LEAST, MOST = 1 / 3, 3.0  # factors; others are taken for failures of the measure
SIZE = -2  # the column of `petriscope.trust.two_sample.Traits.appearance` that has the size of the object
GIVE = "give a factor, or micrometers per pixel"


def estimate_scale(
    known: np.ndarray, here: np.ndarray, weights: np.ndarray | None = None, what: str = "val"
) -> ScaleEstimate:
    """Estimate how many times objects are to be enlarged: the ratio of the median sizes.

    One factor is for all images: factors per image would make all classes of one size. Where the mix of classes differs, so
    does the median, so weights should stand for the mix that is expected here.

    Args:
        known: sizes of objects as the model knows them, float [M]; NaN without an object.
        here: of the images to be scaled, float [N].
        weights: how much each of ``known`` counts, float [M]; None: all alike.
        what: where ``known`` is from, for the messages.

    Raises:
        RequestError: too few images have an object, or the factor is beyond `LEAST` or `MOST`.
    """
    weights = np.ones(len(known)) if weights is None else weights
    there = np.isfinite(known) & (weights > 0)
    found = here[np.isfinite(here)]
    for count, where in ((int(there.sum()), what), (len(found), "these images")):
        if count < FEWEST:
            raise RequestError(
                f"the scale cannot be estimated: in {where}, {count:,} image{' has' if count == 1 else 's have'} an object whose "
                f"size can be measured, and {FEWEST} are needed; {GIVE}"
            )
    before = quantiles(known[there].astype(np.float64), weights[there], (0.5,))[0]
    now = quantiles(found.astype(np.float64), np.ones(len(found)), (0.5,))[0]
    factor = before / now
    if not LEAST <= factor <= MOST:
        raise RequestError(
            f"the scale cannot be estimated: the median size of objects is {before:.3g} of the shorter side in {what} and "
            f"{now:.3g} here, a ratio of {factor:.3g}; factors from {LEAST:.2g} to {MOST:g} are believed. Look at both with "
            f"petriscope data SOURCE --like RUN, or {GIVE}"
        )
    return ScaleEstimate(
        factor=float(f"{factor:.4g}"), known=before, here=now, known_n=int(there.sum()), here_n=len(found)
    )


def class_weights(likeness: Likeness, shares: np.ndarray) -> np.ndarray:
    """How much each image of val counts, float64 [M], so that classes have these shares, float64 [K]."""
    counts = np.bincount(likeness.target, minlength=len(shares))
    return (shares / np.maximum(counts, 1))[likeness.target]
