"""Runs that classify, behind the server: the rows of `petriscope predict`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from petriscope.core.drawing import enlarged_overlay
from petriscope.explain import explain
from petriscope.inference.predict import DecodedFile
from petriscope.inference.predictor import Predictor
from petriscope.ship.server.run_model import RunModel
from petriscope.ship.server.served import Asked, Found, Row
from petriscope.trust.abstention import NOT_SURE, Abstention, plan_abstention
from petriscope.trust.state import LEVELS, MAX_ERRORS


class Model(RunModel):
    """A `petriscope.ship.server.served.Served` that classifies."""

    def __init__(self, predictor: Predictor, name: str, fingerprint: str) -> None:
        super().__init__(predictor, name, fingerprint)
        self.tta = predictor.recipe.evaluation.tta
        scale = predictor.recipe.data.scale
        words = f"scale {scale:.6g}" if isinstance(scale, float) else f"{scale} per pixel"
        self.assumed = {} if scale is None else {"assumed": words}
        if self.tta in predictor.trust.references:
            self.max_errors, self.coverages = MAX_ERRORS, LEVELS
        self._plan = lru_cache(64)(self._planned)

    def rules(self, asked: Asked, withdrawn: bool) -> Abstention:
        plan = self._plan(asked.max_error, asked.coverage)
        if withdrawn and asked.guarantees:
            return plan.without_guarantee(answer=asked.without_guarantee)
        return plan

    def predict(self, names: Sequence[str], images: Sequence[DecodedFile], rules: Sequence[Abstention]) -> list[Found]:
        found = self.predictor.predict(np.stack([image.pixels for image in images]), self.tta)
        far = np.zeros(len(images), bool) if found.ood is None else ~(found.ood <= 1)
        out: list[Found] = []
        for i, (name, rule) in enumerate(zip(names, rules, strict=True)):
            ood = None if found.ood is None else found.ood[i : i + 1]
            p = found.probabilities[i]
            (answer,) = rule.rows(p[None], ood)
            row = Row(
                file=name,
                predicted=self.classes[int(p.argmax())],
                confidence=float(p.max()),
                error=None,
                **answer,
                **self.assumed,
                probabilities=dict(zip(self.classes, map(float, p), strict=True)),
                ood=None if ood is None else float(ood[0]),
            )
            out.append(Found(row, answer["answer"] == NOT_SURE, bool(far[i])))
        return out

    def overlay(self, image: DecodedFile, method: str) -> np.ndarray:
        (heat,) = explain(self.predictor, image.pixels[None], method=method)
        return enlarged_overlay(image.pixels, heat)

    def _planned(self, max_error: float | None, coverage: float | None) -> Abstention:
        return plan_abstention(self.predictor.trust, self.classes, self.tta, max_error, coverage)
