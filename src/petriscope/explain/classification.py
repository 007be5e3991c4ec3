"""Explanations of classification models, of a split for a run and of image files."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from petriscope.core.errors import RequestError
from petriscope.core.progress import TimeLeft, unlimited
from petriscope.core.recipe import Part
from petriscope.data.imageset import ImageSet
from petriscope.explain import explain, methods_for
from petriscope.explain.checks import check, forward_passes
from petriscope.explain.shown import Explained
from petriscope.inference.predictor import Predictor
from petriscope.models.cost import multiply_adds

COLUMNS: tuple[str, ...] = ()  # of the table of explained image files, besides those of all tasks
RIGHT, WRONG = 12, 12  # numbers of correctly and of wrongly classified images shown
BUDGET = 3e11  # multiply-adds for the checks, a few seconds on one core
MOST, FEWEST = 96, 16  # number of images checked
NO_TIME = "there was no time for it; evaluating the split again makes up for it"
MAP = 3  # forward passes that a map takes, if it is made by a gradient


def explain_split(
    predictor: Predictor,
    images: ImageSet,
    predicted: np.ndarray,
    confidence: np.ndarray,
    quiet: bool = True,
    left: TimeLeft = unlimited,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Explain some images of a split, and check the methods on a random sample.

    The checks may take the multiply-adds of `BUDGET`, or those of evaluating the split once if that is more. If this is too
    few for 16 images, methods are left out from the end of the list; if it is too few even for the first, nothing is
    checked.

    Args:
        predicted: predicted classes, int64 [N].
        confidence: float [N].
        left: the time that there is for it. The checks are of as few images and methods as there is time for, by the time that
            the images shown took.

    Returns:
        arrays: ``rows``, indices of the images shown, int64 [P], correctly classified images first, then the wrong ones
        with the most confident first; ``maps``, uint8 [P, 2, H, W] (255 is the maximum), for the predicted and for the true
        class. Empty if the network cannot be explained.
        facts: fields of `petriscope.core.results.Explanations`.
    """
    rows = _chosen(images.targets, predicted, confidence)
    methods = methods_for(predictor)
    facts: dict[str, Any] = {"method": methods[0], "shown": len(rows), "check": None, "left_out": [], "reason": None}
    if left() <= 0:
        return {}, {**facts, "method": None, "shown": 0, "reason": NO_TIME}
    batch, before = images.take(rows), time.monotonic()
    try:
        found = [explain(predictor, batch, classes[rows], methods[0]) for classes in (predicted, images.targets)]
    except (RequestError, RuntimeError) as error:  # a timm model with an unusual structure
        return {}, {**facts, "method": None, "reason": f"{methods[0]} cannot explain this network: {error}"}
    maps = np.round(255 * np.stack(found, axis=1)).astype(np.uint8)
    passes = most_passes(left, time.monotonic() - before, 2 * MAP * len(rows))
    kept, count = affordable(predictor, methods, len(images), passes=passes)
    if kept:
        drawn = np.sort(np.random.default_rng(0).choice(len(images), count, replace=False))
        facts["check"] = check(predictor, images.take(drawn), kept, quiet=quiet, left=left)
        facts["left_out"] = methods[len(kept) :]
        facts["reason"] = NO_TIME if facts["check"] is None else None
    else:
        facts["reason"] = why_unchecked(len(images), passes)
    return {"rows": rows, "maps": maps}, facts


def most_passes(left: TimeLeft, took: float, passes: int) -> float:
    """How many forward passes of an image there is time for, if so many took so many seconds."""
    remaining = left()
    return math.inf if math.isinf(remaining) else max(remaining, 0.0) * passes / max(took, 1e-6)


def why_unchecked(images: int, passes: float = math.inf) -> str:
    """The reason why the methods are not checked on a split with so many images.

    Args:
        passes: that there is time for.
    """
    if images < FEWEST:
        return f"there are fewer than {FEWEST} images"
    return "the checks of this network are too costly for the size of the split" if math.isinf(passes) else NO_TIME


def _chosen(targets: np.ndarray, predicted: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Correctly classified images, the classes in turn, and then the most confident mistakes; indices, int64 [P]."""
    right, wrong = np.flatnonzero(targets == predicted), np.flatnonzero(targets != predicted)
    turn = np.zeros(len(right), dtype=np.int64)
    for label in np.unique(targets[right]):
        members = np.flatnonzero(targets[right] == label)
        turn[members] = np.arange(len(members))
    right = right[np.lexsort((targets[right], turn))][:RIGHT]
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:WRONG]
    return np.concatenate([right, wrong])


def affordable(
    predictor: Predictor, methods: list[str], images: int, others: int = 2, passes: float = math.inf
) -> tuple[list[str], int]:
    """The methods to check, and the number of images to check them on; no methods if not even one can be checked.

    Args:
        images: number of images of the split.
        others: number of orders that the methods are compared with.
        passes: of an image through the network that there is time for.
    """
    each = multiply_adds(predictor.model, predictor.shape)
    budget = min(max(BUDGET, each * images), each * passes)
    for kept in (methods[:count] for count in range(len(methods), 0, -1)):
        count = min(int(budget // (each * forward_passes(kept, others))), images, MOST)
        if count >= FEWEST:
            return kept, count
    return [], 0


def explain_images(predictor: Predictor, batch: list[np.ndarray], label: int | None, part: Part) -> Explained:
    """Explain decoded images, uint8 [H, W, C] each.

    Args:
        label: the class to explain; None: the predicted class.

    Yields:
        for each image, its map, None for the mask, and the fields of its row.
    """
    if not batch:
        return
    images = np.stack(batch)
    found = predictor.probabilities(images)
    asked = found.argmax(1) if label is None else np.full(len(images), label)
    for p, k, heat in zip(found, asked, explain(predictor, images, asked, part), strict=True):
        facts = {"predicted": predictor.classes[int(p.argmax())], "confidence": float(p.max())}
        yield heat, None, {**facts, "explained": predictor.classes[int(k)]}
