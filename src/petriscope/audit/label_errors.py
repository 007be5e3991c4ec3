"""Labels that are probably wrong, judged by networks that were trained on the other images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from petriscope.audit.small_network import shrink, train_small
from petriscope.core.device import choose_format
from petriscope.core.errors import DataError, RequestError
from petriscope.core.progress import progress
from petriscope.core.recipe import check_recipe
from petriscope.data.batches import Batches
from petriscope.data.folds import draw_folds
from petriscope.data.imageset import ImageSet
from petriscope.inference.tta import predict_set

LEAST_IMAGES = 40
LEAST_STEPS = 240  # optimizer steps per training
LEAST_OF_CLASS = 5  # images; from fewer, a network does not learn the class well enough to judge labels
CUT = 0.5  # labels with a higher probability of being wrong are flagged
ROUNDS = 50
SHARPNESS = (0.3, 6.0)  # bounds of the exponent on the probabilities
SIDE = 28  # pixels
# Few epochs and label smoothing: networks that train for long memorize the wrong labels.
RECIPE: dict[str, Any] = {
    "name": "label-errors",
    "augment": [{"name": "translate", "fraction": 0.08}, {"name": "flip", "vertical": 0.5}, "quarter-turn"],
    "model": {"name": "simple-cnn", "norm": "batch"},
    "loss": {"name": "cross-entropy", "label_smoothing": 0.1},
    "optimizer": {"name": "adamw", "lr": 4e-3, "weight_decay": 0.05},
    "schedule": "one-cycle",
}


@dataclass(frozen=True, eq=False)
class LabelErrors:
    """How likely each label is wrong.

    Args:
        flagged: bool [N]; the label is more likely wrong than right.
        suggested: int64 [N], the most likely class if the label is flagged, otherwise the label itself.
        score: float32 [N], the probability that the label is wrong, 0 to 1.
    """

    flagged: np.ndarray
    suggested: np.ndarray
    score: np.ndarray


def out_of_fold_probabilities(
    images: ImageSet, *, folds: int = 4, repeats: int = 1, epochs: int = 8, seed: int = 0, quiet: bool = True
) -> np.ndarray:
    """Class probabilities of every image, from networks that were trained without it.

    Args:
        images: reduced to 28 pixels on the longer side first. Images of one group are left out together.
        folds: number of parts of the set; each is left out once.
        repeats: number of times that folds are drawn and networks trained; the results are averaged.
        epochs: of each training; more for small sets, so that there are at least 240 steps.
        seed: the same seed gives the same probabilities on a CPU with the same number of threads.
        quiet: show no progress.

    Returns:
        float32 [N, K].

    Raises:
        RequestError: fewer than 2 folds, 1 repeat or 1 epoch.
        DataError: fewer than 40 images, a single class, or fewer groups than folds.
    """
    if folds < 2 or repeats < 1 or epochs < 1:
        raise RequestError(
            f"label errors take at least 2 folds, 1 repeat and 1 epoch, not {folds}, {repeats} and {epochs}"
        )
    if len(images) < LEAST_IMAGES or np.count_nonzero(images.counts) < 2:
        raise DataError(
            f"{len(images)} images of {np.count_nonzero(images.counts)} classes are too few; networks that find "
            f"wrong labels are trained on {LEAST_IMAGES} images and 2 classes or more. Leave this check out (--no-labels)"
        )
    small = shrink(images, SIDE)
    batch = int(np.clip(len(images) // 32, 16, 128))
    steps = max(len(images) * (folds - 1) // folds // batch, 1)  # per epoch
    epochs = max(epochs, math.ceil(LEAST_STEPS / steps))
    total = np.zeros((len(images), len(images.classes)), np.float32)
    rounds = [(repeat, fold) for repeat in range(repeats) for fold in range(folds)]
    with progress("checking labels", len(rounds) * epochs, "epochs") as bar:
        for repeat, fold in rounds:
            left_out = draw_folds(images.strata, folds, seed + repeat, images.groups) == fold
            training = {"epochs": epochs, "batch_size": batch, "ema": None, "keep": "last"}
            number = (seed * repeats + repeat) * folds + fold
            recipe = check_recipe({**RECIPE, "seed": number, "training": training})
            model, normalize = train_small(
                small.subset(np.flatnonzero(~left_out)), recipe, lambda: None if quiet else bar.advance()
            )
            held = Batches(small.subset(np.flatnonzero(left_out)), next(model.parameters()).device)
            total[left_out] += predict_set(model, held, normalize, choose_format("auto", held.device))
    return total / repeats


def find_label_errors(targets: np.ndarray, probabilities: np.ndarray) -> LabelErrors:
    """Find the labels that are more likely wrong than right.

    The model: the network gives the distribution of the true class, P(t | image), sharpened or softened by an exponent; the
    label y depends on the true class only, by a noise matrix P(y | t). Matrix and exponent are fitted to the given labels
    by maximum likelihood with expectation maximization (Dawid and Skene, 1979, doi:10.2307/2346806), and give the
    posterior P(t | y, image). The matrix is initialized by confident learning (Northcutt et al., 2021,
    arXiv:1911.00068), which on its own would take every confident mistake of the network for a wrong label.

    Args:
        targets: int64 [N], the given labels.
        probabilities: float32 [N, K], from networks that were not trained on the image. Classes of fewer than 5 images are
            neither judged nor suggested.

    Raises:
        DataError: the shapes do not match, or values are not finite.
    """
    if probabilities.ndim != 2 or len(probabilities) != len(targets) or not np.isfinite(probabilities).all():
        raise DataError(
            f"probabilities must be finite, [N, K] for {len(targets)} labels, not {list(probabilities.shape)}"
        )
    counts = np.bincount(targets, minlength=probabilities.shape[1])
    if len(counts) > probabilities.shape[1]:
        raise DataError(f"label {targets.max()} is out of range: there are {probabilities.shape[1]} classes")
    known = counts >= LEAST_OF_CLASS
    judged = known[targets]
    flagged, suggested, score = np.zeros(len(targets), dtype=bool), targets.copy(), np.zeros(len(targets), np.float32)
    if known.sum() < 2:
        return LabelErrors(flagged, suggested, score)
    classes = np.flatnonzero(known)
    labels = np.searchsorted(classes, targets[judged])
    posterior = _posterior(labels, probabilities[judged][:, classes].astype(np.float64))
    score[judged] = 1 - posterior[np.arange(len(labels)), labels]
    flagged = score > CUT
    suggested[judged] = classes[posterior.argmax(1)]
    return LabelErrors(flagged, np.where(flagged, suggested, targets), score)


def find_binary_errors(targets: np.ndarray, probabilities: np.ndarray) -> LabelErrors:
    """`find_label_errors` for one label among any number of them: 1 where an image has it, else 0.

    Args:
        targets: 0 or 1, [N].
        probabilities: that an image has it, float32 [N].
    """
    return find_label_errors(targets.astype(np.int64), np.stack([1 - probabilities, probabilities], 1))


def _posterior(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """P(true class | label, image), float64 [N, K]."""
    from cleanlab.count import compute_confident_joint
    from scipy.optimize import minimize_scalar

    logarithms = np.log(np.clip(probabilities, 1e-8, 1))
    normal = np.exp(logarithms)
    noise = _noise(compute_confident_joint(labels, normal / normal.sum(1, keepdims=True)).T.astype(np.float64))

    def likelihood(exponent: float) -> float:
        return float(np.log(np.maximum(_joint(logarithms, exponent, noise, labels).sum(1), 1e-12)).mean())

    posterior, exponent = normal, 1.0
    for number in range(ROUNDS):
        if number % 5 == 0:
            exponent = minimize_scalar(lambda e: -likelihood(e), bounds=SHARPNESS, method="bounded").x
        posterior = _joint(logarithms, exponent, noise, labels)
        posterior /= np.maximum(posterior.sum(1, keepdims=True), 1e-300)
        noise = _noise(np.stack([np.bincount(labels, column, noise.shape[1]) for column in posterior.T]))
    return posterior


def _joint(logarithms: np.ndarray, exponent: float, noise: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """P(true class, given label | image), [N, K]."""
    sharpened = np.exp(exponent * (logarithms - logarithms.max(1, keepdims=True)))
    return sharpened / sharpened.sum(1, keepdims=True) * noise.T[labels]


def _noise(counts: np.ndarray) -> np.ndarray:
    """P(given | true), [K, K], from the number of images per true and given class, with one correct label added per class
    so that no row is empty."""
    counts = counts + np.eye(len(counts)) + 1e-3
    return counts / counts.sum(1, keepdims=True)
