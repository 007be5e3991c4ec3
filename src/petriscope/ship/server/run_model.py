"""Runs and model files behind the server."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from petriscope.core.errors import DataError, RequestError
from petriscope.core.files import user_path
from petriscope.core.results import ShiftTest
from petriscope.data.in_memory import InMemory
from petriscope.inference.likeness import OLDER, unlearned
from petriscope.inference.predict import DecodedFile, decoded
from petriscope.inference.predictor import Predictor, load_model, model_path
from petriscope.models import ENSEMBLE
from petriscope.ship.server.served import Served
from petriscope.tasks import in_room
from petriscope.trust.shift import Likeness, Traits
from petriscope.trust.verdict import NOTHING, UNCLAIMED, verdict

BLOCK = 1 << 20


class RunModel:
    """What `petriscope.ship.server.served.Served` asks for, of a `Predictor`, but for what depends on its task."""

    max_errors: tuple[float, ...] = ()
    coverages: tuple[float, ...] = ()

    def __init__(self, predictor: Predictor, name: str, fingerprint: str) -> None:
        self.predictor, self.name, self.fingerprint = predictor, name, fingerprint
        self.task, self.classes, self.shape = predictor.task.name, predictor.classes, predictor.shape
        self.likeness: Likeness | None = predictor.trust.likeness
        self.untested = OLDER

    def decode(self, name: str, content: bytes) -> DecodedFile:
        ((_, (image,)),) = decoded(self.predictor, [InMemory(name, content)], tell=False)
        if isinstance(image, str):
            raise DataError(image)
        return image

    def traits(self, images: np.ndarray) -> Traits:
        assert self.likeness is not None
        return self.predictor.traits(images, self.likeness)

    def unlearned(self, digests: Sequence[bytes]) -> np.ndarray:
        return unlearned(self.predictor, digests, len(digests))

    def verdict(self, test: ShiftTest, without_guarantee: bool) -> list[str]:
        then = UNCLAIMED if without_guarantee else NOTHING
        return verdict(test, then=then, adapts=self.predictor.recipe.model.name != ENSEMBLE)


def open_run_model(path: str, device: str = "auto") -> Served:
    """A run folder or a model file behind the server.

    Raises:
        RequestError: see `petriscope.inference.predictor.load_model`.
    """
    predictor = load_model(path, device)
    place = user_path(path)
    name = place.resolve().name if place.is_dir() else place.stem
    model: Served = in_room(predictor.task, "ship.server").Model(predictor, name, _fingerprint(model_path(place)))
    return model


def names_differ(models: Sequence[Served]) -> None:
    """
    Raises:
        RequestError: two models have one name, so that a request could not say which it wants.
    """
    seen: set[str] = set()
    for model in models:
        if model.name in seen:
            raise RequestError(f"two models are called {model.name}; rename the folder or the file of one of them")
        seen.add(model.name)


def _fingerprint(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(BLOCK):
            found.update(block)
    return found.hexdigest()
