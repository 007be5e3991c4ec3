"""Any other task behind the server: probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from petriscope.core.errors import RequestError
from petriscope.inference.decoding import DecodedFile
from petriscope.inference.package import Package
from petriscope.inference.predictor import Predictor
from petriscope.ship.server.model import FileModel
from petriscope.ship.server.segmentation import NoRules
from petriscope.ship.server.served import Asked, Found, Row


class Generic(FileModel):
    """A `petriscope.ship.server.served.Served` of a task without a module of its own."""

    def __init__(self, predictor: Predictor, name: str, fingerprint: str) -> None:
        super().__init__(predictor, name, fingerprint)
        self.predictor, self.task = predictor, predictor.task.name

    def rules(self, asked: Asked, withdrawn: bool) -> NoRules:
        if asked.guarantees:
            raise RequestError(f"max_error and coverage need a classification model; this is a {self.task} model")
        return NoRules()

    def predict(self, names: Sequence[str], images: Sequence[DecodedFile], rules: Sequence[NoRules]) -> list[Found]:
        probabilities = self.predictor.probabilities(np.stack([image.pixels for image in images]))
        named = (dict(zip(self.classes, p.tolist(), strict=True)) for p in probabilities)
        return [Found(Row(file=name, error=None, probabilities=p)) for name, p in zip(names, named, strict=True)]


def of_run(predictor: Predictor, name: str, fingerprint: str, adapts: bool) -> Generic:
    """A run or a model file behind the server."""
    return Generic(predictor, name, fingerprint)


def of_package(package: Package, name: str) -> Generic:
    """
    Raises:
        RequestError: always.
    """
    raise RequestError(
        f"{package.folder} is a package of a {package.manifest.task} model, which is not served; serve the run"
    )
