"""Explanations of classifiers: what a run keeps of them, and how image files are explained."""

from __future__ import annotations

from typing import Any

import numpy as np

from petriscope.core.errors import RequestError
from petriscope.core.recipe import Part
from petriscope.data.imageset import ImageSet
from petriscope.explain import explain, methods_for
from petriscope.explain.checks import check, forwards
from petriscope.explain.shown import Explained
from petriscope.inference.predictor import Predictor
from petriscope.models.cost import multiply_adds

COLUMNS: tuple[str, ...] = ()  # of the table of explained image files, beside those of every task
RIGHT, WRONG = 12, 12  # images shown
BUDGET = 3e11  # multiply-adds that the checks may take: a few seconds of one core
MOST, FEWEST = 96, 16  # images checked


def explain_split(
    predictor: Predictor,
    images: ImageSet,
    predicted: np.ndarray,
    confidence: np.ndarray,
    quiet: bool = True,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Maps of some images of a split, and the checks of the methods over others.

    The checks take the multiply-adds of `BUDGET`, or as many as evaluating the split once if that is more; where that
    is too little for 16 images, methods are left out from the last, and with the first alone, the checks.

    Args:
        predicted: int64 [N]; confidence: float [N].

    Returns:
        arrays: ``rows`` int64 [P] of the images shown, first the right ones, then the wrong, the most confident first;
        ``maps`` uint8 [P, 2, H, W], 255 the most, for the class predicted and for the true one.
        facts: method, shown, check (see `petriscope.explain.checks.check`) or None, left_out (methods not checked), reason
        (why there is no check, or no map at all).
    """
    rows = _chosen(images.targets, predicted, confidence)
    methods = methods_for(predictor)
    facts: dict[str, Any] = {"method": methods[0], "shown": len(rows), "check": None, "left_out": [], "reason": None}
    batch = images.take(rows)
    try:
        found = [explain(predictor, batch, classes[rows], methods[0]) for classes in (predicted, images.targets)]
    except (RequestError, RuntimeError) as error:  # a network of timm's that is made like no other
        return {}, {**facts, "method": None, "reason": f"{methods[0]} cannot explain this network: {error}"}
    maps = np.round(255 * np.stack(found, axis=1)).astype(np.uint8)
    kept, count = affordable(predictor, methods, len(images))
    if kept:
        drawn = np.sort(np.random.default_rng(0).choice(len(images), count, replace=False))
        facts["check"] = check(predictor, images.take(drawn), kept, quiet=quiet)
        facts["left_out"] = methods[len(kept) :]
    else:
        facts["reason"] = unaffordable(len(images))
    return {"rows": rows, "maps": maps}, facts


def unaffordable(images: int) -> str:
    """Why so many images are not checked."""
    return (
        f"there are fewer than {FEWEST} images" if images < FEWEST else "the network is too costly for it on this split"
    )


def _chosen(targets: np.ndarray, predicted: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Right images, of every class in turn, and the most confident mistakes."""
    right, wrong = np.flatnonzero(targets == predicted), np.flatnonzero(targets != predicted)
    turn = np.zeros(len(right), dtype=np.int64)
    for label in np.unique(targets[right]):
        members = np.flatnonzero(targets[right] == label)
        turn[members] = np.arange(len(members))
    right = right[np.lexsort((targets[right], turn))][:RIGHT]
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:WRONG]
    return np.concatenate([right, wrong])


def affordable(predictor: Predictor, methods: list[str], images: int, others: int = 2) -> tuple[list[str], int]:
    """The methods to check and over how many images; none where not even one can be checked. ``others``: orders that
    they are held against."""
    each = multiply_adds(predictor.model, predictor.shape)
    budget = max(BUDGET, each * images)
    for kept in (methods[:count] for count in range(len(methods), 0, -1)):
        count = min(int(budget // (each * forwards(kept, others))), images, MOST)
        if count >= FEWEST:
            return kept, count
    return [], 0


def explain_images(predictor: Predictor, batch: list[np.ndarray], label: int | None, part: Part) -> Explained:
    """For each image: its map, no mask, and the fields of its row."""
    if not batch:
        return
    images = np.stack(batch)
    found = predictor.probabilities(images)
    asked = found.argmax(1) if label is None else np.full(len(images), label)
    for p, k, heat in zip(found, asked, explain(predictor, images, asked, part), strict=True):
        facts = {"predicted": predictor.classes[int(p.argmax())], "confidence": float(p.max())}
        yield heat, None, {**facts, "explained": predictor.classes[int(k)]}
