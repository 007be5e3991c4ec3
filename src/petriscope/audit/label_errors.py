"""Labels that are likely wrong, by what networks that were not shown them expect."""

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
from petriscope.data.imageset import ImageSet
from petriscope.inference.tta import predict_set

LEAST_IMAGES = 40
LEAST_STEPS = 240  # of a training
LEAST_OF_CLASS = 5  # of fewer images a network learns nothing that a label could be judged by
CUT = 0.5  # more likely wrong than right
ROUNDS = 50
SHARPNESS = (0.3, 6.0)  # bounds of the exponent on the probabilities
SIDE = 28  # pixels
# Few epochs and smoothed labels: a network that is trained for long learns the wrong labels by heart.
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
    """What is thought of each label.

    Args:
        flagged: bool [N]: more likely wrong than right.
        suggested: int64 [N]: the most likely class where the label is flagged, else the label itself.
        score: float32 [N]: the probability that the label is wrong, 0 to 1.
    """

    flagged: np.ndarray
    suggested: np.ndarray
    score: np.ndarray


def out_of_fold_probabilities(
    images: ImageSet, *, folds: int = 4, repeats: int = 1, epochs: int = 8, seed: int = 0, quiet: bool = True
) -> np.ndarray:
    """Class probabilities of every image, by networks that were trained without it.

    Args:
        images: longer sides are shrunk to 28 pixels first. Listing of one group are left out together.
        folds: parts of the set; each is left out once.
        repeats: the folds are drawn anew and trained again, and the mean is taken.
        epochs: of each training; a small set gets more, for 240 steps at least.
        seed: same seed, same probabilities, on a CPU with one number of threads.
        quiet: show no progress.

    Returns:
        float32 [N, K].

    Raises:
        RequestError: fewer than 2 folds, or no repeats or epochs.
        DataError: fewer than 40 images, a single class, or fewer groups than folds.
    """
    if folds < 2 or repeats < 1 or epochs < 1:
        raise RequestError(f"{folds} folds, {repeats} repeats, {epochs} epochs: 2, 1 and 1 are the least")
    if len(images) < LEAST_IMAGES or np.count_nonzero(images.counts) < 2:
        raise DataError(
            f"{len(images)} images of {np.count_nonzero(images.counts)} classes: wrong labels are found by networks trained "
            f"on the others, which takes {LEAST_IMAGES} images and 2 classes or more; leave the check of labels out"
        )
    small = shrink(images, SIDE)
    batch = int(np.clip(len(images) // 32, 16, 128))
    steps = max(len(images) * (folds - 1) // folds // batch, 1)  # an epoch
    epochs = max(epochs, math.ceil(LEAST_STEPS / steps))
    total = np.zeros((len(images), len(images.classes)), np.float32)
    rounds = [(repeat, fold) for repeat in range(repeats) for fold in range(folds)]
    with progress("checking labels", len(rounds) * epochs, "epochs") as bar:
        for repeat, fold in rounds:
            left_out = draw_folds(images.targets, folds, seed + repeat, images.groups) == fold
            training = {"epochs": epochs, "batch_size": batch, "ema": None, "keep": "last"}
            number = (seed * repeats + repeat) * folds + fold
            recipe = check_recipe({**RECIPE, "seed": number, "training": training})
            model, normalize = train_small(
                small.subset(np.flatnonzero(~left_out)), recipe, lambda: None if quiet else bar.advance()
            )
            held = Batches(small.subset(np.flatnonzero(left_out)), next(model.parameters()).device)
            total[left_out] += predict_set(model, held, normalize, choose_format("auto", held.device))
    return total / repeats


def draw_folds(targets: np.ndarray, folds: int, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """The fold of each image, int64 [N]: each class spread over all folds as evenly as it goes, groups kept whole.

    Raises:
        DataError: fewer groups than folds.
    """
    out = np.zeros(len(targets), dtype=np.int64)
    if groups is None:
        rng = np.random.default_rng(seed)
        dealt = 0
        for label in range(targets.max(initial=-1) + 1):
            members = rng.permutation(np.flatnonzero(targets == label))
            out[members] = (dealt + np.arange(len(members))) % folds
            dealt += len(members)
        return out
    from sklearn.model_selection import StratifiedGroupKFold

    if (count := len(np.unique(groups))) < folds:
        raise DataError(
            f"{count} groups cannot be spread over {folds} folds; ask for fewer folds, or leave the groups out"
        )
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for fold, (_, left_out) in enumerate(splitter.split(out, targets, groups)):
        out[left_out] = fold
    return out


def find_label_errors(targets: np.ndarray, probabilities: np.ndarray) -> LabelErrors:
    """Find the labels that are more likely wrong than right.

    A label y is taken to be drawn from the true class t by a table of noise, P(y | t), and the true class from the
    image by the network, P(t | image), made sharper or softer by an exponent. Table and exponent are those under
    which the given labels are most likely (expectation and maximization: Dawid and Skene, 1979, doi:10.2307/2346806),
    and give the posterior P(t | y, image). The start is the table that confident learning counts (Northcutt et al.,
    2021, arXiv:1911.00068), which alone takes every confident mistake of the network for a wrong label.

    Args:
        targets: int64 [N], the given labels.
        probabilities: float32 [N, K], by networks that were not shown the image. A class of fewer than 5 images is
            neither judged nor suggested.

    Raises:
        DataError: the arrays do not fit together.
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
    """P(given | true), [K, K], from images of each true and given class; one right label more, so that none is empty."""
    counts = counts + np.eye(len(counts)) + 1e-3
    return counts / counts.sum(1, keepdims=True)
