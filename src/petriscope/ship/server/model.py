"""What models behind the server have in common, whatever they predict and wherever they come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from petriscope.core.errors import RequestError
from petriscope.core.shift_results import ShiftTest
from petriscope.data.in_memory import InMemory
from petriscope.inference.answers import assumptions
from petriscope.inference.base import Predicts
from petriscope.inference.decoding import DecodedFile, read_file
from petriscope.inference.likeness import OLDER
from petriscope.trust.two_sample import Likeness, Traits
from petriscope.trust.verdict import NOTHING, UNCLAIMED, verdict

PACKED = "it is a package, which has no network to be explained by; serve the run for that"
UNEXPLAINED = "there are no explanations for its task"


class FileModel:
    """What `petriscope.ship.server.served.Served` asks for, but for rules and predictions.

    Args:
        adapts: whether the model can be adapted to images from elsewhere.
        show: where the model looked, or its mask, on an image, uint8 [h, w, 3]; a sentence: why it cannot be shown.
        given: what was said about the classes that occur, for a cell of a table; an empty string: nothing.
    """

    task = ""
    untested = OLDER
    max_errors: tuple[float, ...] = ()
    coverages: tuple[float, ...] = ()
    colors: tuple[str, ...] = ()

    def __init__(
        self,
        model: Predicts,
        name: str,
        fingerprint: str,
        likeness: Likeness | None = None,
        adapts: bool = True,
        show: Callable[[DecodedFile], np.ndarray] | str = UNEXPLAINED,
        given: str = "",
    ) -> None:
        self.model, self.name, self.fingerprint, self.likeness = model, name, fingerprint, likeness
        self.classes, self.shape, self.reading = model.classes, model.shape, model.reading
        self.adapts, self.show, self.given = adapts, show, given
        self.assumed = assumptions(model, given)

    @property
    def unshown(self) -> str:
        return self.show if isinstance(self.show, str) else ""

    def decode(self, name: str, content: bytes) -> DecodedFile:
        return read_file(InMemory(name, content), self.model.shape, self.model.reading)[0]

    def traits(self, images: np.ndarray) -> Traits:
        raise NotImplementedError  # models without likeness are not asked

    def unlearned(self, digests: Sequence[bytes]) -> np.ndarray:
        exposure = self.model.exposure
        return np.ones(len(digests), bool) if exposure is None else exposure.roles(digests) != "train"

    def verdict(self, test: ShiftTest, without_guarantee: bool) -> list[str]:
        then = UNCLAIMED if without_guarantee else NOTHING
        return verdict(test, then=then, mix_given=bool(self.given), adapts=self.adapts)

    def overlay(self, image: DecodedFile) -> np.ndarray:
        if isinstance(self.show, str):
            raise RequestError(f"{self.name} cannot show where it looks: {self.show}")
        return self.show(image)
