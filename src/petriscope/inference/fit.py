"""Fits what a model keeps besides its weights: the temperature, the predictions on val, and the out-of-distribution
detector."""

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

DETECTOR_IMAGES = 2500  # per split, at most; more images hardly change the detector


def calibrate(
    predictor: Predictor, train: ImageSet | None, val: ImageSet, tta: TTA | None = None, quiet: bool = False
) -> Prediction:
    """Fit temperature, thresholds and prediction sets on val, and store them in ``predictor.trust``.

    Args:
        train: the training images, to fit the out-of-distribution detector on; None: the detector does not change.
        tta: test-time augmentation that the fit is for; None: as in the recipe.

    Returns:
        the predictions on val.
    """
    tta = tta or predictor.recipe.evaluation.tta
    raw, seen = _look(predictor, val, tta, None if quiet else "calibrating")
    detector = predictor.trust.detector
    if train is not None:
        detector = _fit_detector(predictor, train, val, seen, quiet)
    ood = None if detector is None else detector.score(*seen)
    reference = fit_reference(raw, val.targets, ood, val.groups)
    predictor.trust = Trust({**predictor.trust.references, tta: reference}, detector)
    return predictor.judge(raw, tta, ood)


def fit_after_training(predictor: Predictor, train: ImageSet | None, val: ImageSet, quiet: bool = False) -> Prediction:
    """`calibrate` for the test-time augmentation of the recipe, and without augmentation: the stress test uses none, and
    measures whether guarantees hold.

    Returns:
        the predictions on val with the test-time augmentation of the recipe.
    """
    predictions = calibrate(predictor, train, val, None, quiet)
    if predictor.recipe.evaluation.tta != "none":
        calibrate(predictor, None, val, "none", quiet=True)
    return predictions


def recalibrate(predictor: Predictor, images: ImageSet, tta: TTA | None = None, quiet: bool = False) -> Prediction:
    """`calibrate` on labeled images from elsewhere instead of val. What was fitted on val is dropped. The distances of the
    out-of-distribution detector stay; their limits are raised, so that these images are in distribution.

    Args:
        tta: test-time augmentation that the fit is for; None: as in `fit_after_training`.
    """
    detector = predictor.trust.detector
    if detector is not None:
        detector = detector.widened(*_look(predictor, images, "none", None if quiet else "computing features")[1])
    predictor.trust = Trust({}, detector)
    if tta is None:
        return fit_after_training(predictor, None, images, quiet)
    return calibrate(predictor, None, images, tta, quiet)


def _fit_detector(predictor: Predictor, train: ImageSet, val: ImageSet, seen: Seen, quiet: bool) -> Detector:
    """Fit the detector on unchanged and on augmented images, because a network is trained to predict augmented images too.

    Args:
        seen: features and statistics of the unchanged val images.
    """

    def look(images: ImageSet, label: str) -> Seen:
        return _look(predictor, images, "none", None if quiet else label)[1]

    part = _sample(train)
    plain = look(part, "computing features of train")
    operations = [AUGMENTATIONS.build(each) for each in predictor.recipe.augment]
    unmixed = [operation for operation in operations if not isinstance(operation, Mixing)]
    if not unmixed:
        return fit_detector(plain, part.targets, seen)
    augmented = look(augmented_set(part, unmixed), "computing features of train, augmented")
    harder = look(augmented_set(_sample(val), unmixed), "computing features of val, augmented")
    return fit_detector(_joined([plain, augmented]), np.tile(part.targets, 2), seen, harder)


def _sample(images: ImageSet) -> ImageSet:
    rows = np.arange(len(images))
    if len(rows) > DETECTOR_IMAGES:
        rows = np.sort(np.random.default_rng(0).permutation(len(rows))[:DETECTOR_IMAGES])
    return images.subset(rows)


def _look(predictor: Predictor, images: ImageSet, tta: TTA, label: str | None) -> tuple[np.ndarray, Seen]:
    """Probabilities of all images before temperature scaling, float32 [N, K], and what the detector needs of them."""
    seen: list[Seen] = []
    batches = Batches(images, predictor.device, predictor.recipe.data.memory)
    raw = predictor.look(batches, tta, label, lambda *found: seen.append(found))
    return raw, _joined(seen)


def _joined(seen: list[Seen]) -> Seen:
    features, statistics = zip(*seen, strict=True)
    return np.concatenate(features), np.concatenate(statistics)
