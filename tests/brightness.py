"""Dark and bright images, and predictors that tell them apart by their mean."""

import numpy as np

from petriscope.data.imageset import ImageSet

DARK, BRIGHT = 60, 200


def image_set(count=60, channels=3, side=12, shares=(0.5, 0.5)):
    """Evenly dark and evenly bright images, with a little noise."""
    rng = np.random.default_rng(0)
    targets = np.repeat([0, 1], [round(count * share) for share in shares])
    pixels = np.where(targets, BRIGHT, DARK)[:, None, None, None] + rng.integers(-8, 9, (count, side, side, channels))
    return ImageSet(pixels.astype(np.uint8), targets, ("dark", "bright"), np.array([str(i) for i in range(count)]))


def by_mean(threshold):
    """A predictor that calls an image bright above a mean of ``threshold``."""

    def predict(images):
        bright = images.mean((1, 2, 3)) > threshold
        return np.stack([~bright, bright], 1).astype(np.float32)

    return predict


def always_dark(images):
    """Always the first class."""
    return np.tile([1.0, 0.0], (len(images), 1)).astype(np.float32)
