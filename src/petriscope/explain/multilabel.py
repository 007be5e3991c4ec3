"""Explanations of any number of labels per image: of one that was asked for, or of the most probable one."""

from __future__ import annotations

import numpy as np

from petriscope.core.names import label_text
from petriscope.core.recipe import Part
from petriscope.explain import explain
from petriscope.explain.shown import Explained
from petriscope.inference.predictor import Predictor
from petriscope.tasks.multilabel import HALF

COLUMNS: tuple[str, ...] = ()


def explain_images(predictor: Predictor, batch: list[np.ndarray], label: int | None, part: Part) -> Explained:
    """Explain decoded images, uint8 [H, W, C] each.

    Args:
        label: the class to explain; None: the most probable label of each image.

    Yields:
        for each image, its map, None for the mask, and the fields of its row: ``predicted``, its labels; ``explained``, and
        ``confidence``, the probability of that.
    """
    if not batch:
        return
    images = np.stack(batch)
    tta = predictor.recipe.evaluation.tta
    found, reference = predictor.probabilities(images), predictor.trust.labels.get(tta)
    cutoffs = np.full(found.shape[1], HALF) if reference is None else reference.cutoffs
    asked = found.argmax(1) if label is None else np.full(len(images), label)
    for p, k, heat in zip(found, asked, explain(predictor, images, asked, part), strict=True):
        labels = [predictor.classes[place] for place in np.flatnonzero(p >= cutoffs)]
        facts = {"predicted": label_text(labels), "confidence": float(p[k])}
        yield heat, None, {**facts, "explained": predictor.classes[int(k)]}
