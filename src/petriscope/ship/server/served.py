"""What the server needs of a model, whatever it comes from: a run, a model file, or a package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from petriscope.core.errors import DataError
from petriscope.core.shift_results import ShiftTest
from petriscope.data.decode import image_size
from petriscope.data.in_memory import InMemory
from petriscope.data.planes import MAKERS, kind_of
from petriscope.inference.base import Reading
from petriscope.inference.decoding import DecodedFile
from petriscope.trust.two_sample import Likeness, Traits


class Asked(BaseModel):
    """What a request asks for.

    Args:
        max_error: the largest error rate allowed among answers; None: abstain only on images that are out of distribution.
        coverage: how often a prediction set should contain the true class; None: no sets.
        without_guarantee: answer also where guarantees are withdrawn, without any claim.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    max_error: float | None = Field(
        None, gt=0, lt=1, description="Abstain so that at most this share of the answers is wrong, such as 0.01."
    )
    coverage: float | None = Field(
        None, gt=0, lt=1, description="Add prediction sets that contain the true class this often, such as 0.95."
    )
    without_guarantee: bool = Field(False, description="Answer also where guarantees are withdrawn, without any claim.")

    @property
    def guarantees(self) -> bool:
        """Whether something is to be guaranteed."""
        return self.max_error is not None or self.coverage is not None


class Row(BaseModel):
    """What is said of one image; what does not apply to the model or to the request is left out.

    Args:
        file: the name of the file as it was sent.
        error: why it cannot be read; then nothing else is said of it.
        predicted: the class with the largest probability, or for masks the class of most pixels.
        confidence: its probability, 0 to 1; for masks the mean over pixels of the largest one.
        answer: the predicted class, or ``not sure``.
        why: the reason for ``not sure``.
        answers: for any number of labels per image, of each class ``present``, ``absent`` or ``not sure``; ``answer`` is then
            those that are present, with commas between, or ``none``.
        set: the prediction set, if a coverage was asked for.
        assumed: which classes occur, or the share of each, and at which scale the image was read, if anything was said of it.
        outside: the probability that the model gave to classes that do not occur, before it was divided among the others.
        probabilities: of all classes.
        ood: out-of-distribution score; above 1, the image is out of distribution. null: the model has no detector.
        mask: for masks, a PNG file in base64 whose pixel values are class indices, of the size of the image.
        shares: for masks, the share of pixels of each class.
    """

    file: str
    error: str | None = None
    predicted: str | None = None
    confidence: float | None = None
    answer: str | None = None
    why: str | None = None
    answers: dict[str, str] | None = None
    set: str | None = None
    assumed: str | None = None
    outside: float | None = None
    probabilities: dict[str, float] | None = None
    ood: float | None = None
    mask: str | None = None
    shares: dict[str, float] | None = None


@dataclass(frozen=True)
class Found:
    """A row and what is counted of it.

    Args:
        abstained: an answer was possible and not given.
        far: the image is out of distribution.
        seen: what is compared of it with val, as a row of what was seen of its batch; None: `Served.traits` says it.
    """

    row: Row
    abstained: bool = False
    far: bool = False
    seen: tuple[Traits, int] | None = None


class Rules(Protocol):
    """How a model answers one request.

    Args:
        notes: what is guaranteed, a sentence each.
    """

    @property
    def notes(self) -> tuple[str, ...]: ...


class Served(Protocol):
    """A model behind the server. One thread at a time calls `predict`, `traits` and `overlay`; any thread calls `decode`.

    Args:
        name: in requests, different from those of the other models.
        fingerprint: sha-256 of what it was loaded from.
        task: its name.
        classes: K names.
        shape: (height, width, channels) of the images it takes.
        reading: how it reads image files.
        likeness: what images of val are like; None: images cannot be compared with them.
        untested: why images cannot be compared with val, where ``likeness`` is None.
        max_errors, coverages: those that can be asked for.
        colors: of the classes in overlays of masks, such as ``#1f77b4``; of others none.
        unshown: why it cannot show where it looked; an empty string: it can, or shows its mask.
        assumed: what was said about the classes and the scale of the images that come in, as the field of rows; empty: nothing.
    """

    name: str
    fingerprint: str
    task: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    reading: Reading
    likeness: Likeness | None
    untested: str
    max_errors: tuple[float, ...]
    coverages: tuple[float, ...]
    colors: tuple[str, ...]
    assumed: Mapping[str, str]

    @property
    def unshown(self) -> str: ...

    def decode(self, name: str, content: bytes) -> DecodedFile:
        """An image file in the shape of the model.

        Raises:
            DataError: it cannot be read.
        """
        ...

    def rules(self, asked: Asked, withdrawn: bool) -> Any:
        """The rules for a request, which `predict` takes.

        Args:
            withdrawn: guarantees do not hold for the images that come in.

        Raises:
            RequestError: the model cannot give what is asked for.
        """
        ...

    def predict(self, names: Sequence[str], images: Sequence[DecodedFile], rules: Sequence[Any]) -> list[Found]:
        """One row per image, each by its own rules."""
        ...

    def traits(self, images: np.ndarray) -> Traits:
        """What is compared of images, uint8 [N, H, W, C], with those of val."""
        ...

    def unlearned(self, digests: Sequence[bytes]) -> np.ndarray:
        """Which of the images with these digests the model has not learned from, bool [N]."""
        ...

    def verdict(self, test: ShiftTest, without_guarantee: bool) -> list[str]:
        """What a comparison with val means for guarantees, in sentences."""
        ...

    def overlay(self, image: DecodedFile) -> np.ndarray:
        """Where the model looked, or its mask, on the image: uint8 [h, w, 3].

        Raises:
            RequestError: it cannot be explained.
        """
        ...


def check_pixels(name: str, content: bytes, most: int) -> int:
    """The number of pixels of an image, by its header.

    Raises:
        DataError: there are more than ``most``, it is no image, or it is a file of a microscope's maker.
    """
    file = InMemory(name, content)
    if (kind := kind_of(file)) in MAKERS:  # read by compiled code that was not made for files of strangers
        raise DataError(f"{name} is a {kind.upper()} file, which this server does not take; send it as TIFF or PNG")
    height, width = image_size(file)
    if width * height > most:
        raise DataError(
            f"{name} has {width:,} x {height:,} pixels, more than the {most / 1e6:g} megapixels that this server takes"
        )
    return width * height
