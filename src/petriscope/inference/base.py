"""What image files are predicted with: a `petriscope.inference.predictor.Predictor`, or anything else that does the same. The
protocols are all that is asked of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from petriscope.core.scale import Scale
from petriscope.data.decode import Filter
from petriscope.data.membership import Exposure
from petriscope.data.rescale import Field
from petriscope.trust.two_sample import Likeness, Traits

if TYPE_CHECKING:
    from petriscope.core.recipe import TTA


@dataclass(frozen=True)
class Reading:
    """How image files are read for a model.

    Args:
        filter: by which they are resized.
        bits: significant bits of 16-bit images.
        gray: whether gray was asked for, so that lost colors are no news.
        scale: times that objects are enlarged, or micrometers per pixel of the files; None: as they are.
        field_of_view: of the images that the model takes, height and width in micrometers; None: not known.
    """

    filter: Filter = "bilinear"
    bits: int = 16
    gray: bool = False
    scale: Scale | None = None
    field_of_view: Field | None = None


@dataclass(frozen=True, eq=False)
class Prediction:
    """The predictions for N images.

    Args:
        raw: probabilities before temperature scaling, float32 [N, K]. What is known about the classes that occur is in both.
        probabilities: scaled with the temperature fitted on val, float32 [N, K].
        ood: out-of-distribution score, float32 [N]; above 1, an image is out of distribution. None: the model file has no
            detector.
        outside: the probability that the model gave to classes that do not occur, before it was set to 0, float32 [N]; None:
            nothing was said about the classes.
    """

    raw: np.ndarray
    probabilities: np.ndarray
    ood: np.ndarray | None
    outside: np.ndarray | None = None


class Predicts(Protocol):
    """A model for image files.

    Args:
        classes: K names.
        shape: (height, width, channels) of the images that it takes.
        exposure: the images that it has seen; None: they are not known.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def shape(self) -> tuple[int, int, int]: ...

    @property
    def reading(self) -> Reading: ...

    @property
    def exposure(self) -> Exposure | None: ...


class Classifies(Predicts, Protocol):
    """A model that labels images.

    Args:
        likeness: what images of val are like; None: it is not known.
    """

    @property
    def likeness(self) -> Likeness | None: ...

    def predict(self, images: np.ndarray, tta: TTA | None = None) -> Prediction:
        """Predict images, uint8 [B, H, W, C]."""

    def traits(self, images: np.ndarray, likeness: Likeness) -> Traits:
        """What is compared of images, uint8 [B, H, W, C], with ``likeness``."""


class Segments(Predicts, Protocol):
    """A model that gives each pixel a class."""

    def probabilities(self, images: np.ndarray, tta: TTA | None = None) -> np.ndarray:
        """float32 [B, K, H, W] of images, uint8 [B, H, W, C]."""
