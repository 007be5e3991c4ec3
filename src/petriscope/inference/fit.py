"""Fitting what is kept with a model beside its weights: a temperature, val's answers, and how its images look."""

from __future__ import annotations

import numpy as np

from petriscope.augment import AUGMENTATIONS
from petriscope.augment.base import Mixing
from petriscope.augment.sets import augmented_set
from petriscope.data.batches import Batches
from petriscope.data.imageset import ImageSet
from petriscope.inference.predictor import Prediction, Predictor
from petriscope.inference.tta import TTA
from petriscope.trust.ood import Detector, Seen, fit_detector
from petriscope.trust.state import Trust, fit_reference

LOOKED_AT = 2500  # images of a split that the detector is fitted on, at most: more change it little


def calibrate(
    predictor: Predictor, train: ImageSet | None, val: ImageSet, tta: TTA | None = None, quiet: bool = False
) -> Prediction:
    """Fit what val says of a predictor, put it into ``predictor.trust``, and give the answers on val.

    Args:
        train: what it was trained on, for the detector of unlike images; None leaves the detector as it is.
        tta: that the answers are averaged over; None: as in the recipe.
    """
    tta = tta or predictor.recipe.evaluation.tta
    raw, shown = _look(predictor, val, tta, None if quiet else "calibrating")
    detector = predictor.trust.detector
    if train is not None:
        detector = _fit_detector(predictor, train, val, shown, quiet)
    ood = None if detector is None else detector.score(*shown)
    reference = fit_reference(raw, val.targets, ood)
    predictor.trust = Trust({**predictor.trust.references, tta: reference}, detector)
    return predictor.judge(raw, tta, ood)


def fit_after_training(predictor: Predictor, train: ImageSet | None, val: ImageSet, quiet: bool = False) -> Prediction:
    """`calibrate` for the test-time augmentation of the recipe, whose answers are given, and for none: the stress test goes
    without, and asks what val's promises are worth there."""
    answers = calibrate(predictor, train, val, None, quiet)
    if predictor.recipe.evaluation.tta != "none":
        calibrate(predictor, None, val, "none", quiet=True)
    return answers


def recalibrate(predictor: Predictor, images: ImageSet, tta: TTA | None = None, quiet: bool = False) -> Prediction:
    """`calibrate` on labeled images from elsewhere in place of val, with nothing kept of what val said. The detector's
    measures stay those of the training images; their limits move out, so that these images are not unlike them.

    Args:
        tta: None: as `fit_after_training` does.
    """
    detector = predictor.trust.detector
    if detector is not None:
        detector = detector.widened(*_look(predictor, images, "none", None if quiet else "looking at images")[1])
    predictor.trust = Trust({}, detector)
    if tta is None:
        return fit_after_training(predictor, None, images, quiet)
    return calibrate(predictor, None, images, tta, quiet)


def _fit_detector(predictor: Predictor, train: ImageSet, val: ImageSet, shown: Seen, quiet: bool) -> Detector:
    """By images as they are and as training augments them: what a network was trained to see through is no reason to
    keep silent.

    Args:
        shown: what was seen of val as it is.
    """

    def look(images: ImageSet, label: str) -> Seen:
        return _look(predictor, images, "none", None if quiet else label)[1]

    part = _some(train)
    plain = look(part, "looking at train")
    operations = [AUGMENTATIONS.build(each) for each in predictor.recipe.augment]
    unmixed = [operation for operation in operations if not isinstance(operation, Mixing)]
    if not unmixed:
        return fit_detector(plain, part.targets, shown)
    augmented = look(augmented_set(part, unmixed), "looking at train, augmented")
    harder = look(augmented_set(_some(val), unmixed), "looking at val, augmented")
    return fit_detector(_joined([plain, augmented]), np.tile(part.targets, 2), shown, harder)


def _some(images: ImageSet) -> ImageSet:
    rows = np.arange(len(images))
    if len(rows) > LOOKED_AT:
        rows = np.sort(np.random.default_rng(0).permutation(len(rows))[:LOOKED_AT])
    return images.subset(rows)


def _look(predictor: Predictor, images: ImageSet, tta: TTA, label: str | None) -> tuple[np.ndarray, Seen]:
    """The network's own probabilities, float32 [N, K], and what the detector goes by."""
    seen: list[Seen] = []
    batches = Batches(images, predictor.device, predictor.recipe.data.memory)
    raw = predictor.look(batches, tta, label, lambda *found: seen.append(found))
    return raw, _joined(seen)


def _joined(seen: list[Seen]) -> Seen:
    features, statistics = zip(*seen, strict=True)
    return np.concatenate(features), np.concatenate(statistics)
