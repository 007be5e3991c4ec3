"""Tries a model before it serves: an image that is encoded, decoded and predicted, alone and in a batch."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

from petriscope.core.errors import PetriscopeError
from petriscope.ship.server.served import Asked, Served

APART = 0.05  # how far confidences may be apart in batches of different sizes, in the coarsest number format


def try_out(served: Served, batch: int) -> None:
    """Decode and predict an image of noise, alone and in a batch of that size.

    Raises:
        PetriscopeError: what comes out is not what went in, or no prediction.
    """
    pixels = np.random.default_rng(0).integers(0, 256, served.shape, dtype=np.uint8)
    out = BytesIO()
    Image.fromarray(pixels[..., 0] if served.shape[2] == 1 else pixels).save(out, "PNG")
    image = served.decode("self-test", out.getvalue())
    if not np.array_equal(image.plain, pixels):
        raise PetriscopeError("the self-test failed: a PNG file was decoded to other pixels than it was written from")
    rules = served.rules(Asked(), withdrawn=False)
    alone = served.predict(["self-test"], [image], [rules])[0].row
    together = served.predict(["self-test"] * batch, [image] * batch, [rules] * batch)
    for row in (alone, *(found.row for found in together)):
        values = list((row.probabilities or row.shares or {}).values())
        if not np.isfinite(values).all() or len(values) != len(served.classes):
            raise PetriscopeError("the self-test failed: the model predicts what are no probabilities")
        if row.confidence is not None and abs(row.confidence - (alone.confidence or 0)) > APART:
            raise PetriscopeError(
                "the self-test failed: the model predicts otherwise for an image alone than in a batch"
            )
    if served.likeness is not None:
        served.traits(pixels[None])
