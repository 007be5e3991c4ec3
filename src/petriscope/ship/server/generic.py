"""Runs of any other task, behind the server: a table of probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from petriscope.core.errors import RequestError
from petriscope.inference.predict import DecodedFile
from petriscope.ship.server.run_model import RunModel
from petriscope.ship.server.segmentation import NoRules
from petriscope.ship.server.served import Asked, Found, Row


class Model(RunModel):
    """A `petriscope.ship.server.served.Served` of a task without a module of its own."""

    def rules(self, asked: Asked, withdrawn: bool) -> NoRules:
        if asked.guarantees:
            raise RequestError(f"max_error and coverage need a classification model; this is a {self.task} model")
        return NoRules()

    def predict(self, names: Sequence[str], images: Sequence[DecodedFile], rules: Sequence[NoRules]) -> list[Found]:
        probabilities = self.predictor.probabilities(np.stack([image.pixels for image in images]))
        named = [dict(zip(self.classes, map(float, p), strict=True)) for p in probabilities]
        return [Found(Row(file=name, error=None, probabilities=p)) for name, p in zip(names, named, strict=True)]

    def overlay(self, image: DecodedFile, method: str) -> np.ndarray:
        raise RequestError(f"where the model looks is not shown for {self.task} models")
