"""What image files are predicted with: a `petriscope.inference.predictor.Predictor`, or anything else that does the same. The
protocols are all that is asked of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from petriscope.core.channels import Names
from petriscope.core.errors import RequestError
from petriscope.core.scale import Scale
from petriscope.data.decode import Channels, Filter, Form
from petriscope.data.membership import Exposure
from petriscope.data.planes import Pages, Projection
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
        depth: bits of the values that the model takes, 8 or 16.
        range: the stored values that are black and white; None: those of their type.
        channels: names; empty: gray or RGB.
        overlap: images keep their own sizes, and masks are predicted by tiles of the model's shape, neighbors of which overlap
            by this share of their side; None: images are resized to the model's shape.
        pages, projection: what planes of a file become, see `petriscope.data.planes.combine`.
    """

    filter: Filter = "bilinear"
    bits: int = 16
    gray: bool = False
    scale: Scale | None = None
    field_of_view: Field | None = None
    depth: int = 8
    range: tuple[float, float] | None = None
    channels: Names = ()
    overlap: float | None = None
    pages: Pages = "auto"
    projection: Projection | None = None

    def form(self, count: int) -> Form:
        """What the pixels of a file become, for a model that takes so many channels."""
        channels: Channels = self.channels or ("gray" if count == 1 else "rgb")
        return Form(self.filter, channels, self.bits, self.depth, self.range, self.pages, self.projection)


def check_tiles(overlap: float, task: str, dense: bool) -> None:
    """
    Raises:
        RequestError: a model of this task does not predict by tiles, or they cannot overlap by such a share of their side.
    """
    if not dense:
        raise RequestError(f"tiles need a model for masks; this is a {task} model")
    if not 0 <= overlap <= 0.5:
        raise RequestError(f"tiles overlap by a share of their side from 0 to 0.5, not {overlap:g}")


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
