"""Explanations of segmentation models, of a split for a run and of image files."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from petriscope.core.errors import RequestError
from petriscope.core.progress import TimeLeft, unlimited
from petriscope.core.recipe import Part
from petriscope.data.imageset import ImageSet
from petriscope.explain import explain, methods_for
from petriscope.explain.checks import ORDERS, check
from petriscope.explain.classification import MAP, NO_TIME, affordable, most_passes, why_unchecked
from petriscope.explain.regions import largest_class, mean_probability, predicted_masks
from petriscope.explain.shown import Explained
from petriscope.inference.predictor import Predictor
from petriscope.metrics.segmentation import scenes_of

COLUMNS = ("share", "note")  # of the table of explained image files, besides those of all tasks
EACH = 3  # images per class
LEAST = 0.01  # smallest share of an image that a class takes in the checks
FEWEST_SCENES = 5


def explain_split(
    predictor: Predictor, images: ImageSet, pixels: np.ndarray, quiet: bool = True, left: TimeLeft = unlimited
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Explain the images with the most pixels of each class, and check the methods on a random sample. For the cost of the
    checks, and for ``left``, see `petriscope.explain.classification.explain_split`.

    In the checks, each image is explained for one class, drawn from those predicted for at least 1 % of its pixels. Nothing
    is checked on fewer than five scenes, because images of one scene are not independent.

    Args:
        pixels: number of pixels predicted as each class, int64 [N, K].

    Returns:
        arrays: ``rows``, indices of the images shown, int64 [P], per class in descending order of pixels; ``classes``, int64
        [P]; ``maps``, uint8 [P, H, W] (255 is the maximum); ``masks``, as predicted, uint8 [P, H, W]; ``share``, the share
        of pixels predicted as the class, and ``confidence``, its mean probability there, float [P]. Empty if the network
        cannot be explained.
        facts: fields of `petriscope.core.results.Explanations`.
    """
    rows, classes = _most_of_each(pixels)
    methods = methods_for(predictor)
    facts: dict[str, Any] = {"method": methods[0], "shown": len(rows), "check": None, "left_out": [], "reason": None}
    if left() <= 0:
        return {}, {**facts, "method": None, "shown": 0, "reason": NO_TIME}
    batch, before = images.take(rows), time.monotonic()
    masks = predicted_masks(predictor, batch)
    regions = masks == classes[:, None, None]
    try:
        found = explain(predictor, batch, classes, methods[0], regions)
    except (RequestError, RuntimeError) as error:  # a network with an unusual structure
        return {}, {**facts, "method": None, "reason": f"{methods[0]} cannot explain this network: {error}"}
    maps = np.round(255 * found).astype(np.uint8)
    passes = most_passes(left, time.monotonic() - before, (1 + MAP) * len(rows))
    _check_into(facts, predictor, images, pixels, methods, quiet, left, passes)
    arrays = {"rows": rows, "classes": classes, "maps": maps, "masks": masks, "share": regions.mean((1, 2))}
    return {**arrays, "confidence": mean_probability(predictor, batch, classes, regions)}, facts


def _most_of_each(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices and classes of the images shown, int64 [P] each."""
    rows: list[int] = []
    classes: list[int] = []
    for label in range(pixels.shape[1]):
        most = np.argsort(-pixels[:, label], kind="stable")[:EACH]
        most = most[pixels[most, label] > 0]
        rows += most.tolist()
        classes += [label] * len(most)
    return np.array(rows, dtype=np.int64), np.array(classes, dtype=np.int64)


def _check_into(
    facts: dict[str, Any],
    predictor: Predictor,
    images: ImageSet,
    pixels: np.ndarray,
    methods: list[str],
    quiet: bool,
    left: TimeLeft,
    passes: float,
) -> None:
    scenes = scenes_of(images.groups, len(images))
    kept, count = affordable(predictor, methods, len(images), len(ORDERS), passes)
    if not kept:
        facts["reason"] = why_unchecked(len(images), passes)
        return
    if len(np.unique(scenes)) < FEWEST_SCENES:
        facts["reason"] = f"there are fewer than {FEWEST_SCENES} scenes"
        return
    rng = np.random.default_rng(0)
    drawn = np.sort(rng.choice(len(images), count, replace=False))
    batch = images.take(drawn)
    masks = predicted_masks(predictor, batch)
    shares = np.stack([(masks == label).mean((1, 2)) for label in range(pixels.shape[1])], axis=1)
    classes = np.where(shares >= LEAST, rng.random(shares.shape), -1.0).argmax(1)
    facts["check"] = check(
        predictor,
        batch,
        kept,
        quiet=quiet,
        classes=classes,
        regions=masks == classes[:, None, None],
        scenes=scenes[drawn],
        left=left,
    )
    facts["reason"] = NO_TIME if facts["check"] is None else None
    facts["left_out"] = methods[len(kept) :]


def explain_images(predictor: Predictor, batch: list[np.ndarray], label: int | None, part: Part) -> Explained:
    """Explain decoded images, uint8 [H, W, C] each.

    Args:
        label: the class to explain; None: the largest class of each predicted mask.

    Yields:
        for each image, its map (None if no pixel is predicted as the class), its mask, uint8 [H, W], and the fields of its
        row.
    """
    if not batch:
        return
    images = np.stack(batch)
    found = predictor.probabilities(images)
    masks = found.argmax(1).astype(np.uint8)
    largest = largest_class(masks, predictor.classes)
    asked = largest if label is None else np.full(len(images), label)
    regions = masks == asked[:, None, None]
    there = np.flatnonzero(regions.any((1, 2)))
    maps = dict(zip(there, explain(predictor, images[there], asked[there], part, regions[there]), strict=True))
    for i, (mask, region) in enumerate(zip(masks, regions, strict=True)):
        explained = predictor.classes[int(asked[i])]
        facts: dict[str, Any] = {"predicted": predictor.classes[int(largest[i])], "explained": explained}
        facts |= {"confidence": None, "share": float(region.mean()), "note": None}
        if i in maps:
            facts["confidence"] = float(found[i, asked[i]][region].mean())
        else:
            facts["note"] = f"no pixel is predicted as {explained}"
        yield maps.get(i), mask, facts
