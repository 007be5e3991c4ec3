"""The handwritten digits of scikit-learn: 1,797 gray images of 8 x 8, without splits."""

from __future__ import annotations

import numpy as np

from petriscope.core.recipe import DataSection
from petriscope.data.imageset import ImageSet
from petriscope.data.sources.arrays import build_sets
from petriscope.data.sources.labels import name_numbers


def read(section: DataSection, warnings: list[str]) -> dict[str, ImageSet]:
    """Read one image set without splits; the stored values 0..16 are scaled to 0..255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    labels, classes = name_numbers({"all": digits.target.astype(np.int64)}, None, section, "digits")
    return build_sets({"all": pixels}, labels, classes, section, "digits", warnings, named=section.classes is not None)
