"""Any number of labels per image behind the server: the rows of `petriscope predict`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from petriscope.core.drawing import enlarged_overlay, shown
from petriscope.core.errors import RequestError
from petriscope.core.recipe import TTA
from petriscope.explain import explain
from petriscope.inference.base import Classifies
from petriscope.inference.decoding import DecodedFile
from petriscope.inference.exported import PackagePredictor
from petriscope.inference.label_answers import LabelPlan
from petriscope.inference.multilabel import plan_labels
from petriscope.inference.package import Package
from petriscope.inference.predictor import Predictor
from petriscope.ship.server.model import PACKED, FileModel
from petriscope.ship.server.served import Asked, Found, Row
from petriscope.trust.state import MAX_ERRORS
from petriscope.trust.two_sample import Traits


class LabelModel(FileModel):
    """A `petriscope.ship.server.served.Served` for any number of labels per image."""

    task = "multilabel"

    def __init__(
        self,
        model: Classifies,
        name: str,
        fingerprint: str,
        plan: Callable[[float | None], LabelPlan],
        tta: TTA | None,
        max_errors: tuple[float, ...],
        show: Callable[[DecodedFile], np.ndarray] | str,
        adapts: bool = True,
    ) -> None:
        super().__init__(model, name, fingerprint, model.likeness, adapts=adapts, show=show)
        self.classifies, self.plan, self.tta, self.max_errors = model, plan, tta, max_errors

    def rules(self, asked: Asked, withdrawn: bool) -> LabelPlan:
        if asked.coverage is not None:
            raise RequestError("coverage is for one class per image; max_error says for which labels an answer is sure")
        plan = self.plan(asked.max_error)
        return plan.without_guarantee(answer=asked.without_guarantee) if withdrawn and asked.guarantees else plan

    def traits(self, images: np.ndarray) -> Traits:
        assert self.likeness is not None
        return self.classifies.traits(images, self.likeness)

    def predict(self, names: Sequence[str], images: Sequence[DecodedFile], rules: Sequence[LabelPlan]) -> list[Found]:
        found = self.classifies.predict(np.stack([image.pixels for image in images]), self.tta)
        out = []
        for place, (name, rule) in enumerate(zip(names, rules, strict=True)):
            p = found.probabilities[place]
            score = None if found.ood is None else found.ood[place : place + 1]
            (row,) = rule.rows(p[None], score)
            probabilities = dict(zip(self.classes, p.tolist(), strict=True))
            far = score is not None and not score[0] <= 1
            said = Row(
                file=name,
                answer=row["labels"],
                why=row["why"],
                answers=row["answers"],
                **self.assumed,
                probabilities=probabilities,
                ood=None if score is None else float(score[0]),
            )
            out.append(Found(said, abstained=bool(row["open"]), far=far))
        return out


def of_run(predictor: Predictor, name: str, fingerprint: str, adapts: bool) -> LabelModel:
    """A run or a model file behind the server, or a package that is judged as they are."""
    tta = predictor.recipe.evaluation.tta

    def show(image: DecodedFile) -> np.ndarray:
        return enlarged_overlay(shown(image.pixels, predictor.channels), explain(predictor, image.pixels[None])[0])

    packed, rates = isinstance(predictor, PackagePredictor), MAX_ERRORS if tta in predictor.trust.labels else ()
    plan = partial(plan_labels, predictor, tta)
    return LabelModel(predictor, name, fingerprint, plan, tta, rates, PACKED if packed else show, adapts)


def of_package(package: Package, name: str) -> LabelModel:
    """A package behind the server."""
    rates = tuple(each.max_error for each in package.manifest.error_rates)
    return LabelModel(package, name, package.manifest.fingerprint, package.label_plan, None, rates, PACKED)
