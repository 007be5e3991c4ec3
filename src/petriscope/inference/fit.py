"""Fits what a model keeps besides its weights: the temperature, the predictions on val, the out-of-distribution detector, and
what images of val are like."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from petriscope.augment import AUGMENTATIONS
from petriscope.augment.base import Mixing
from petriscope.augment.sets import augmented_set
from petriscope.data.batches import Batches
from petriscope.data.imageset import ImageSet
from petriscope.inference.base import Prediction
from petriscope.inference.predictor import Predictor
from petriscope.inference.sampling import sample_rows
from petriscope.inference.tta import TTA
from petriscope.trust.multilabel import LabelReference, as_one_class, fit_labels, in_one_mix
from petriscope.trust.ood import Detector, Seen, fit_detector, fit_pixels_by_folds
from petriscope.trust.shift import MOST_OF_VAL, appearance_of, fit_likeness, fit_looks
from petriscope.trust.state import Reference, Trust, fit_reference
from petriscope.trust.two_sample import Likeness

DETECTOR_IMAGES = 2500  # per split, at most; more images hardly change the detector
CHUNK = 256  # images that are measured at a time


def calibrate(
    predictor: Predictor,
    train: ImageSet | None,
    val: ImageSet,
    tta: TTA | None = None,
    quiet: bool = False,
    most: int = DETECTOR_IMAGES,
) -> Prediction:
    """Fit temperature, thresholds and prediction sets on val, and store them in ``predictor.trust``, with what val is like.

    Args:
        train: the training images, to fit the out-of-distribution detector on; None: the detector does not change.
        tta: test-time augmentation that the fit is for; None: as in the recipe.
        most: images of each split that the detector is fitted on.

    Returns:
        the predictions on val.
    """
    tta = tta or predictor.recipe.evaluation.tta
    raw, seen = _look(predictor, val, tta, None if quiet else "calibrating")
    detector = predictor.trust.detector
    if train is not None:
        detector = _fit_detector(predictor, train, val, seen, quiet, most)
    ood = None if detector is None else detector.score(*seen)
    likeness = _fit_likeness(predictor, val, tta, raw, seen, detector)
    if val.task.exclusive:
        reference = fit_reference(raw, val.targets, ood, val.groups)
        predictor.trust = Trust({**predictor.trust.references, tta: reference}, detector, likeness=likeness)
    else:
        labels = {**predictor.trust.labels, tta: fit_labels(raw, val.targets, ood, val.groups)}
        predictor.trust = Trust({}, detector, likeness=likeness, labels=labels)
    return predictor.judge(raw, tta, ood)


def fit_after_training(
    predictor: Predictor, train: ImageSet | None, val: ImageSet, quiet: bool = False, most: int = DETECTOR_IMAGES
) -> Prediction:
    """`calibrate` for the test-time augmentation of the recipe, and without augmentation: the stress test uses none, and
    measures whether guarantees hold.

    Returns:
        the predictions on val with the test-time augmentation of the recipe.
    """
    predictions = calibrate(predictor, train, val, None, quiet, most)
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


def fit_with_unlabeled(
    predictor: Predictor, train: ImageSet, val: ImageSet, unlabeled: ImageSet, quiet: bool = False
) -> Prediction:
    """`fit_after_training` for a network that was adapted to images without labels, so that these are in distribution. All else
    is fitted on val, and holds for images like those of val.

    Returns:
        the predictions on val with the test-time augmentation of the recipe.
    """
    tell = None if quiet else "computing features"
    seen = _look(predictor, val, "none", tell)[1]
    detector = _fit_detector(predictor, train, val, seen, quiet)
    detector = detector.widened(*_look(predictor, unlabeled, "none", tell)[1])
    predictor.trust = Trust({}, detector)
    return fit_after_training(predictor, None, val, quiet)


def fit_on_held_out(
    predictor: Predictor,
    train: ImageSet,
    val: ImageSet | None,
    images: ImageSet,
    raw: Mapping[TTA, np.ndarray],
    unlabeled: ImageSet | None = None,
    quiet: bool = False,
) -> Prediction:
    """`calibrate` on images of another place that the network was adapted to, from predictions that were made without them.

    Args:
        train, val: what the detector is fitted on; without val, that of before is used.
        images: of the other place.
        raw: for each test-time augmentation, ``none`` among them, probabilities before temperature scaling of networks that
            did not learn from ``images``, float32 [N, K].
        unlabeled: more images of that place. The limits of the detector are raised until ``images`` and these are in
            distribution.

    Returns:
        the predictions for ``images`` with the first test-time augmentation of ``raw``.
    """
    tell = None if quiet else "computing features"
    detector, ood = predictor.trust.detector, None
    if val is not None:
        detector = _fit_detector(predictor, train, val, _look(predictor, val, "none", tell)[1], quiet)
    seen = _look(predictor, images, "none", tell)[1]
    if detector is not None:
        more = [] if unlabeled is None or not len(unlabeled) else [_look(predictor, unlabeled, "none", tell)[1]]
        detector = detector.widened(*_joined([seen, *more]))
        ood = detector.score(*seen)
    predictor.trust = _on_held_out(images, raw, ood, detector)
    first = next(iter(raw))
    return predictor.judge(raw[first], first, ood)


def fit_on_folds(
    predictor: Predictor, images: ImageSet, fold: np.ndarray, raw: Mapping[TTA, np.ndarray], quiet: bool = False
) -> Prediction:
    """`calibrate` by cross-validation, for a model that learned from all images: on predictions that were made without them. The
    out-of-distribution detector looks at pixels alone, see `petriscope.trust.ood.fit_pixels_by_folds`.

    Args:
        images: all that were drawn into folds, N.
        fold: that holds out each image, int64 [N]; negative: none does.
        raw: for each test-time augmentation, ``none`` among them, probabilities before temperature scaling of networks that did
            not learn from the image, float32 [N, K].

    Returns:
        the predictions for the images that are held out, in order, with the first test-time augmentation of ``raw``.
    """
    operations = [AUGMENTATIONS.build(each) for each in predictor.recipe.augment]
    unmixed = [operation for operation in operations if not isinstance(operation, Mixing)]
    plain = _look(predictor, images, "none", None if quiet else "looking at pixels")[1][1]
    sample, augmented = sample_rows(len(images), DETECTOR_IMAGES), None
    if unmixed:
        augmented = _look(predictor, augmented_set(images.subset(sample), unmixed), "none", None)[1][1]
    detector, scores = fit_pixels_by_folds(plain, fold, sample, augmented)
    rows = np.flatnonzero(fold >= 0)
    part, ood = images.subset(rows), scores[rows]
    held = {tta: each[rows] for tta, each in raw.items()}
    predictor.trust = _on_held_out(part, held, ood, detector)
    first = next(iter(held))
    return predictor.judge(held[first], first, ood)


def _on_held_out(
    images: ImageSet, raw: Mapping[TTA, np.ndarray], ood: np.ndarray | None, detector: Detector | None
) -> Trust:
    """What is fitted on predictions, before scaling, for images that were held out."""
    references, labels = dict[str, Reference](), dict[str, LabelReference]()
    for tta, each in raw.items():
        if images.task.exclusive:
            references[tta] = fit_reference(each, images.targets, ood, images.groups)
        else:
            labels[tta] = fit_labels(each, images.targets, ood, images.groups)
    rows = sample_rows(len(images), MOST_OF_VAL)
    part, told = images.subset(rows), raw["none"][rows]
    told = told if images.task.exclusive else as_one_class(told)
    likeness = fit_looks(told, appearances(part), part.strata, part.groups)
    likeness = likeness if images.task.exclusive else in_one_mix(likeness)
    return Trust(references, detector, likeness=likeness, labels=labels)


def _fit_detector(
    predictor: Predictor, train: ImageSet, val: ImageSet, seen: Seen, quiet: bool, most: int = DETECTOR_IMAGES
) -> Detector:
    """Fit the detector on unchanged and on augmented images, because a network is trained to predict augmented images too.

    Args:
        seen: features and statistics of the unchanged val images.
    """

    def look(images: ImageSet, label: str) -> Seen:
        return _look(predictor, images, "none", None if quiet else label)[1]

    part = _sample(train, most)
    plain = look(part, "computing features of train")
    operations = [AUGMENTATIONS.build(each) for each in predictor.recipe.augment]
    unmixed = [operation for operation in operations if not isinstance(operation, Mixing)]
    if not unmixed:
        return fit_detector(plain, part.strata, seen)
    augmented = look(augmented_set(part, unmixed), "computing features of train, augmented")
    harder = look(augmented_set(_sample(val, most), unmixed), "computing features of val, augmented")
    return fit_detector(_joined([plain, augmented]), np.tile(part.strata, 2), seen, harder)


def _fit_likeness(
    predictor: Predictor, val: ImageSet, tta: TTA, raw: np.ndarray, seen: Seen, detector: Detector | None
) -> Likeness:
    """What images of val are like, without test-time augmentation.

    Args:
        raw: probabilities of all of val under ``tta``; ``seen``: what the detector needs of them.
    """
    rows = sample_rows(len(val), MOST_OF_VAL)
    part = val.subset(rows)
    if tta == "none":
        raw, seen = raw[rows], (seen[0][rows], seen[1][rows])
    else:
        raw, seen = _look(predictor, part, "none", None)
    ood = None if detector is None else detector.score(*seen)
    told = raw if val.task.exclusive else as_one_class(raw)
    likeness = fit_likeness(told, seen[0], ood, appearances(part), part.strata, part.groups, detector)
    return likeness if val.task.exclusive else in_one_mix(likeness)


def appearances(images: ImageSet) -> np.ndarray:
    """`appearance_of` all images of a set."""
    starts = range(0, len(images), CHUNK)
    chunks = (images.take(np.arange(start, min(start + CHUNK, len(images)))) for start in starts)
    return np.concatenate([appearance_of(torch.from_numpy(chunk)) for chunk in chunks])


def _sample(images: ImageSet, most: int) -> ImageSet:
    return images.subset(sample_rows(len(images), most))


def _look(predictor: Predictor, images: ImageSet, tta: TTA, label: str | None) -> tuple[np.ndarray, Seen]:
    """Probabilities of all images before temperature scaling, float32 [N, K], and what the detector needs of them."""
    seen: list[Seen] = []
    batches = Batches(images, predictor.device, predictor.recipe.data.memory)
    raw = predictor.look(batches, tta, label, lambda *found: seen.append(found))
    return raw, _joined(seen)


def _joined(seen: list[Seen]) -> Seen:
    features, statistics = zip(*seen, strict=True)
    return np.concatenate(features), np.concatenate(statistics)
