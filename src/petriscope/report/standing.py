"""What the metrics of a run stand on, what is missing, and the commands that add it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from petriscope.core.recipe import Recipe
from petriscope.report import wording
from petriscope.report.classification import LabelView
from petriscope.report.robustness import StressView
from petriscope.report.segmentation import SegmentView

TTA_WORDS = {
    "mirror": "the mean over each image and its left-right mirror image (test-time augmentation: mirror)",
    "flips": "the mean over 4 mirror images of each image (test-time augmentation: flips)",
    "crops": "the mean over each image and five crops of it, enlarged (test-time augmentation: crops)",
    "d4": "the mean over 8 flips and quarter turns of each image (test-time augmentation: d4)",
}


def notes(views: Sequence[LabelView | SegmentView], recipe: Recipe) -> list[str]:
    """How the predictions were made and of what, where that is not plain."""
    notes = []
    for tta, words in TTA_WORDS.items():
        names = [view.name for view in views if view.metrics.get("tta") == tta]
        if names:
            where = "" if len(names) == len(views) else f" on {' and '.join(names)}"
            notes.append(f"Each prediction{where} is {words}.")
    for view in views:
        source = view.metrics.get("source")
        if source and source != recipe.data.source:
            notes.append(f"The {view.name} images came from {source}, not from the source trained on.")
        if view.name == "train":
            notes.append("The model learned the train images: metrics on train say nothing about new ones.")
    return notes


def standing(
    views: Sequence[LabelView | SegmentView],
    splits: dict[str, Any],
    training: dict[str, Any] | None,
    history: list[dict[str, Any]],
    recipe: Recipe,
    folder: str,
) -> list[tuple[str, str]]:
    """Sentences on what the headline stands on and what is missing, each with the command that adds it."""
    have = {view.name for view in views}
    out: list[tuple[str, str]] = []
    if training is None:
        out.append(
            (
                f"Training is not finished: {wording.plural(len(history), 'epoch')} of {recipe.training.epochs} done. "
                "It goes on with",
                f"petriscope train --resume {folder}",
            )
        )
    if "test" in have:
        out.append(("The test images were used neither to train nor to choose the weights kept.", ""))
        val = next((view for view in views if view.name == "val"), None)
        if val is not None:
            key, name = ("miou", "mean IoU") if "miou" in val.metrics else ("accuracy", "accuracy")
            metric = wording.percent_with_interval(val.metrics.get(key), val.metrics.get(f"{key}_ci95"))
            out.append((f"On val, {_use_of_val(training)}, {name} is {metric}.", ""))
        return out
    if "val" in have:
        out.append((f"This metric is from val, {_use_of_val(training)}: expect a little less on new images.", ""))
    elif splits and "val" not in splits:
        out.append(("The data have no val split: no epoch was chosen, and the last weights are kept.", ""))
    elif "val" in splits and training is not None:
        out.append(("Val has not been evaluated.", f"petriscope evaluate {folder} --split val"))
    if training is None:
        out.append(("Metrics with intervals, mistakes and calibration are added when it is done.", ""))
        return out
    if "test" in splits:
        size = wording.plural(int(splits["test"].get("images", 0)), "test image")
        words = f"The {size} have not been looked at yet. When all choices are made:"
        out.append((words, f"petriscope evaluate {folder}"))
    else:
        out.append(
            (
                "There is no test split, so nothing here was measured on images untouched by choices. "
                "Metrics on other labeled images:",
                f"petriscope evaluate {folder} --data SOURCE",
            )
        )
    return out


def under_stress(stress: StressView | None) -> list[tuple[str, str]]:
    if stress is None:
        return []
    return [(f"On {stress.split} images that are disturbed, {stress.metric}: {stress.headline}.", "")]


def _use_of_val(training: dict[str, Any] | None) -> str:
    if training is not None and training.get("kept") == "best":
        return "which chose the weights kept"
    return "which is there to make choices on"


def alarm(results: dict[str, Any], data: dict[str, Any]) -> tuple[str, str] | None:
    """Test so far below val that chance does not explain it."""
    test, val = (results.get(name) or {} for name in ("test", "val"))
    (_, high), (low, _) = (r.get("accuracy_ci95") or (None, None) for r in (test, val))
    if high is None or low is None or high >= low:
        return None
    gap = 100 * (val["accuracy"] - test["accuracy"])
    source = data.get("source") or "SOURCE"
    return (
        f"Test is {gap:.1f} points below val, and their intervals do not meet: more than chance. The splits may "
        "differ in origin, or val may hold copies of training images. To look for them:",
        f"petriscope audit {shlex.quote(str(source))}",
    )
