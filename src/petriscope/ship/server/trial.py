"""Tries a model before it serves: an image that is encoded, decoded and predicted, alone and in a batch."""

from __future__ import annotations

import numpy as np

from petriscope.core.errors import PetriscopeError
from petriscope.data.encode import encoded_exactly
from petriscope.data.levels import from_levels, to_levels
from petriscope.ship.server.served import Asked, Served

APART = 0.05  # how far confidences may be apart in batches of different sizes, in the coarsest number format


def try_out(served: Served, batch: int) -> None:
    """Decode and predict an image of noise, alone and in a batch of that size.

    Raises:
        PetriscopeError: what comes out is not what went in, or no prediction.
    """
    reading = served.reading
    dtype = np.uint8 if reading.depth == 8 else np.uint16
    noise = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, served.shape, dtype=dtype)
    stored = from_levels(noise, reading.bits, reading.range)
    pixels = to_levels(stored, reading.bits, reading.depth, reading.range)
    image = served.decode("self-test", encoded_exactly(stored)[1])
    if not np.array_equal(image.plain, pixels):
        raise PetriscopeError("the self-test failed: a file was decoded to other pixels than it was written from")
    rules = served.rules(Asked(), withdrawn=False)
    alone = served.predict(["self-test"], [image], [rules])[0].row
    together = served.predict(["self-test"] * batch, [image] * batch, [rules] * batch)
    for row in (alone, *(found.row for found in together)):
        values = list((row.probabilities or row.shares or {}).values())
        if not np.isfinite(values).all() or len(values) != len(served.classes):
            raise PetriscopeError("the self-test failed: the output of the model is not a set of probabilities")
        if row.confidence is not None and abs(row.confidence - (alone.confidence or 0)) > APART:
            raise PetriscopeError(
                "the self-test failed: the model predicts otherwise for an image alone than in a batch"
            )
    if served.likeness is not None:
        served.traits(pixels[None])
