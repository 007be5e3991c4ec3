"""Classification behind the server: the rows of `petriscope predict`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from petriscope.core.drawing import enlarged_overlay, shown
from petriscope.core.recipe import TTA
from petriscope.explain import explain
from petriscope.inference.answers import answered
from petriscope.inference.base import Classifies, Prediction
from petriscope.inference.decoding import DecodedFile
from petriscope.inference.exported import PackagePredictor
from petriscope.inference.package import Package
from petriscope.inference.predictor import Predictor
from petriscope.ship.server.model import PACKED, FileModel
from petriscope.ship.server.served import Asked, Found, Row
from petriscope.trust.abstention import NOT_SURE, Abstention
from petriscope.trust.plan import plan_abstention
from petriscope.trust.state import LEVELS, MAX_ERRORS
from petriscope.trust.two_sample import Traits

Plan = Callable[[float | None, float | None], Abstention]


class Classifier(FileModel):
    """A `petriscope.ship.server.served.Served` for whatever labels images.

    Args:
        plan: the rules for a wanted error rate and a wanted coverage.
        tta: test-time augmentation; None: the model's own.
        max_errors, coverages: those on offer.
        show: where the model looked, on an image, uint8 [h, w, 3]; a sentence: why it cannot be shown.
        given: see `FileModel`.
    """

    task = "classification"

    def __init__(
        self,
        model: Classifies,
        name: str,
        fingerprint: str,
        plan: Plan,
        tta: TTA | None,
        max_errors: tuple[float, ...],
        coverages: tuple[float, ...],
        adapts: bool,
        show: Callable[[DecodedFile], np.ndarray] | str,
        given: str = "",
    ) -> None:
        super().__init__(model, name, fingerprint, model.likeness, adapts, show, given)
        self.classifies, self.plan, self.tta = model, plan, tta
        self.max_errors, self.coverages = max_errors, coverages

    def traits(self, images: np.ndarray) -> Traits:
        assert self.likeness is not None
        return self.classifies.traits(images, self.likeness)

    def rules(self, asked: Asked, withdrawn: bool) -> Abstention:
        plan = self.plan(asked.max_error, asked.coverage)
        return plan.without_guarantee(answer=asked.without_guarantee) if withdrawn and asked.guarantees else plan

    def _look(self, images: np.ndarray) -> tuple[Prediction, Traits | None]:
        """A package gives both at once; a network of torch would take longer for both than for the prediction."""
        if self.likeness is not None and isinstance(self.classifies, Package):
            return self.classifies.predict_and_compare(images, self.likeness)
        return self.classifies.predict(images, self.tta), None

    def predict(self, names: Sequence[str], images: Sequence[DecodedFile], rules: Sequence[Abstention]) -> list[Found]:
        found, seen = self._look(np.stack([image.pixels for image in images]))
        out: list[Found | None] = [None] * len(images)
        for rule in {id(each): each for each in rules}.values():
            places = [place for place, each in enumerate(rules) if each is rule]
            p, ood = found.probabilities[places], None if found.ood is None else found.ood[places]
            for i, (place, row) in enumerate(zip(places, answered(self.classes, p, ood, rule), strict=True)):
                probabilities = dict(zip(self.classes, p[i].tolist(), strict=True))
                score = None if ood is None else float(ood[i])
                others = {} if found.outside is None else {"outside": float(found.outside[place])}
                said = {**row, **self.assumed, **others}
                out[place] = Found(
                    Row(file=names[place], error=None, **said, probabilities=probabilities, ood=score),
                    abstained=row["answer"] == NOT_SURE,
                    far=score is not None and not score <= 1,
                    seen=None if seen is None else (seen, place),
                )
        return [each for each in out if each is not None]


def of_run(predictor: Predictor, name: str, fingerprint: str, adapts: bool) -> Classifier:
    """A run or a model file behind the server, or a package that is judged as they are."""
    tta = predictor.recipe.evaluation.tta
    fitted = tta in predictor.trust.references
    given = "" if predictor.trust.reweighting is None else predictor.trust.reweighting.prior.cell()

    def show(image: DecodedFile) -> np.ndarray:
        return enlarged_overlay(shown(image.pixels, predictor.channels), explain(predictor, image.pixels[None])[0])

    return Classifier(
        predictor,
        name,
        fingerprint,
        partial(plan_abstention, predictor.trust, predictor.classes, tta),
        tta,
        MAX_ERRORS if fitted else (),
        LEVELS if fitted else (),
        adapts,
        PACKED if isinstance(predictor, PackagePredictor) else show,
        given,
    )


def of_package(package: Package, name: str) -> Classifier:
    """A package behind the server."""
    rates = tuple(each.max_error for each in package.manifest.error_rates)
    levels = tuple(each.coverage for each in package.manifest.coverages)
    return Classifier(package, name, package.manifest.fingerprint, package.plan, None, rates, levels, True, PACKED)
