"""Explanations of segmenters: what a run keeps of them, and how image files are explained."""

from __future__ import annotations

from typing import Any

import numpy as np

from petriscope.core.errors import RequestError
from petriscope.core.recipe import Part
from petriscope.data.imageset import ImageSet
from petriscope.explain import explain, methods_for
from petriscope.explain.checks import ORDERS, check
from petriscope.explain.classification import affordable, unaffordable
from petriscope.explain.regions import largest_class, mean_probability, predicted_masks
from petriscope.explain.shown import Explained
from petriscope.inference.predictor import Predictor
from petriscope.metrics.segmentation import scenes_of

COLUMNS = ("share", "note")  # of the table of explained image files, beside those of every task
EACH = 3  # images per class
LEAST = 0.01  # share of an image from which a class is asked about in the checks
FEWEST_SCENES = 5


def explain_split(
    predictor: Predictor, images: ImageSet, pixels: np.ndarray, quiet: bool = True
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Maps of the images that have most of a class, and the checks of the methods over others, which cost as much as
    those of labels may; see `petriscope.explain.classification.explained`.

    In the checks each image is asked about one class, drawn from those that take 1 % of it or more. Fewer than five
    scenes are not checked: images of one scene are no independent witnesses.

    Args:
        pixels: predicted as each class in each image, int64 [N, K].

    Returns:
        arrays: ``rows`` int64 [P] of the images shown, by class, in falling order; ``classes`` int64 [P]; ``maps`` uint8
        [P, H, W], 255 the most; ``masks`` as predicted, uint8 [P, H, W]; ``share`` of the image that is the class and its
        mean probability there, ``confidence``, float [P].
        facts: method, shown, check (see `petriscope.explain.checks.check`) or None, left_out (methods not checked), reason
        (why there is no check, or no map at all).
    """
    rows, classes = _most_of_each(pixels)
    methods = methods_for(predictor)
    facts: dict[str, Any] = {"method": methods[0], "shown": len(rows), "check": None, "left_out": [], "reason": None}
    batch = images.take(rows)
    masks = predicted_masks(predictor, batch)
    regions = masks == classes[:, None, None]
    try:
        found = explain(predictor, batch, classes, methods[0], regions)
    except (RequestError, RuntimeError) as error:  # a network that is made like no other
        return {}, {**facts, "method": None, "reason": f"{methods[0]} cannot explain this network: {error}"}
    maps = np.round(255 * found).astype(np.uint8)
    _check_into(facts, predictor, images, pixels, methods, quiet)
    arrays = {"rows": rows, "classes": classes, "maps": maps, "masks": masks, "share": regions.mean((1, 2))}
    return {**arrays, "confidence": mean_probability(predictor, batch, classes, regions)}, facts


def _most_of_each(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and classes of the images shown."""
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
) -> None:
    scenes = scenes_of(images.groups, len(images))
    kept, count = affordable(predictor, methods, len(images), len(ORDERS))
    if not kept:
        facts["reason"] = unaffordable(len(images))
        return
    if len(np.unique(scenes)) < FEWEST_SCENES:
        facts["reason"] = f"the images are of fewer than {FEWEST_SCENES} scenes"
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
    )
    facts["left_out"] = methods[len(kept) :]


def explain_images(predictor: Predictor, batch: list[np.ndarray], label: int | None, part: Part) -> Explained:
    """For each image: its map, None where no pixel is predicted as the class; its mask, uint8 [H, W]; and the fields of its
    row."""
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
