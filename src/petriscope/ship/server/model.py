"""What models behind the server have in common, whatever they predict and wherever they come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from petriscope.core.errors import RequestError
from petriscope.core.shift_results import ShiftTest
from petriscope.data.in_memory import InMemory
from petriscope.inference.base import Predicts
from petriscope.inference.decoding import DecodedFile, read_file
from petriscope.inference.likeness import OLDER
from petriscope.trust.two_sample import Likeness, Traits
from petriscope.trust.verdict import NOTHING, UNCLAIMED, verdict


class FileModel:
    """What `petriscope.ship.server.served.Served` asks for, but for rules and predictions.

    Args:
        adapts: whether the model can be adapted to images from elsewhere.
        show: where the model looked, or its mask, on an image, uint8 [h, w, 3]; None: it cannot be shown.
    """

    task = ""
    untested = OLDER
    max_errors: tuple[float, ...] = ()
    coverages: tuple[float, ...] = ()

    def __init__(
        self,
        model: Predicts,
        name: str,
        fingerprint: str,
        likeness: Likeness | None = None,
        adapts: bool = True,
        show: Callable[[DecodedFile], np.ndarray] | None = None,
    ) -> None:
        self.model, self.name, self.fingerprint, self.likeness = model, name, fingerprint, likeness
        self.classes, self.shape, self.adapts, self.show = model.classes, model.shape, adapts, show

    @property
    def overlays(self) -> bool:
        return self.show is not None

    def decode(self, name: str, content: bytes) -> DecodedFile:
        return read_file(InMemory(name, content), self.model.shape, self.model.reading)[0]

    def traits(self, images: np.ndarray) -> Traits:
        raise NotImplementedError  # models without likeness are not asked

    def unlearned(self, digests: Sequence[bytes]) -> np.ndarray:
        exposure = self.model.exposure
        return np.ones(len(digests), bool) if exposure is None else exposure.roles(digests) != "train"

    def verdict(self, test: ShiftTest, without_guarantee: bool) -> list[str]:
        return verdict(test, then=UNCLAIMED if without_guarantee else NOTHING, adapts=self.adapts)

    def overlay(self, image: DecodedFile) -> np.ndarray:
        if self.show is None:
            raise RequestError(f"{self.name} cannot show where it looks")
        return self.show(image)
