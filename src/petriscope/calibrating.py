"""Fitting what is kept with a model beside its weights: a temperature, val's answers, and how its pictures look."""

from __future__ import annotations

import numpy as np

from petriscope.classifier import Answers, Classifier
from petriscope.data.batches import Batches
from petriscope.data.imageset import ImageSet
from petriscope.evaluation.inference import TTA
from petriscope.evaluation.ood import Detector, fit_detector
from petriscope.evaluation.trust import Trust, fit_reference

TRAIN_LOOKED_AT = 5000  # pictures of train that the detector is fitted on, at most: more change it little


def calibrate(
    classifier: Classifier, train: ImageSet | None, val: ImageSet, tta: TTA | None = None, quiet: bool = False
) -> Answers:
    """Fit what val says of a classifier, put it into ``classifier.trust``, and give the answers on val.

    Args:
        train: what it was trained on, for the detector of unlike pictures; None leaves the detector as it is.
        tta: that the answers are averaged over; None: as in the recipe.
    """
    tta = tta or classifier.recipe.evaluation.tta
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    raw = _look(classifier, val, tta, seen, None if quiet else "evaluating val")
    shown = _joined(seen)
    detector = classifier.trust.detector
    if train is not None:
        detector = _fit_detector(classifier, train, shown, quiet)
    outlier = None if detector is None else detector.score(*shown)
    reference = fit_reference(raw, val.targets, outlier)
    classifier.trust = Trust({**classifier.trust.references, tta: reference}, detector)
    return classifier.judge(raw, tta, outlier)


def calibrate_trained(classifier: Classifier, train: ImageSet | None, val: ImageSet, quiet: bool = False) -> Answers:
    """`calibrate` for the test-time augmentation of the recipe, whose answers are given, and for none: the stress test goes
    without, and asks what val's promises are worth there."""
    answers = calibrate(classifier, train, val, None, quiet)
    if classifier.recipe.evaluation.tta != "none":
        calibrate(classifier, None, val, "none", quiet=True)
    return answers


def _fit_detector(classifier: Classifier, train: ImageSet, val: tuple[np.ndarray, np.ndarray], quiet: bool) -> Detector:
    rows = np.arange(len(train))
    if len(rows) > TRAIN_LOOKED_AT:
        rows = np.sort(np.random.default_rng(0).permutation(len(rows))[:TRAIN_LOOKED_AT])
    part = train.subset(rows)
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    _look(classifier, part, "none", seen, None if quiet else "looking at train")
    return fit_detector(_joined(seen), part.targets, val)


def _look(
    classifier: Classifier, images: ImageSet, tta: TTA, seen: list[tuple[np.ndarray, np.ndarray]], label: str | None
) -> np.ndarray:
    batches = Batches(images, classifier.device, classifier.recipe.data.memory)
    return classifier.look(batches, tta, label, lambda *found: seen.append(found))


def _joined(seen: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    features, statistics = zip(*seen, strict=True)
    return np.concatenate(features), np.concatenate(statistics)
