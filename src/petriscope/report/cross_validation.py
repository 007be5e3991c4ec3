"""How a model was judged by cross-validation, for the page of its run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from petriscope.core.recipe import Recipe
from petriscope.core.results import CrossValidation, FoldResult, SplitInfo
from petriscope.report import wording
from petriscope.report.metrics import in_sentence
from petriscope.tasks import MetricInfo, Task

SHOWN = 3  # metrics in the table of folds
INTERVALS = (
    "Networks of different folds share most of their training images, so their mistakes are not independent. Intervals of the "
    "metrics of all images are those of the corrected resampled variance (Nadeau and Bengio, 2003), or those of the images where "
    "these are wider; intervals per class take the networks as given."
)


@dataclass(frozen=True)
class CrossValidationView:
    """The section on a cross-validation.

    Args:
        about: how the model was judged and what it is, a sentence each.
        columns: names of metrics.
        rows: of each fold: the run, images, and metrics.
        notes: what the folds cannot show.
    """

    about: list[str]
    columns: list[str]
    rows: list[tuple[str, str, list[str]]]
    notes: list[str]


def cross_validation_view(task: Task, found: CrossValidation) -> CrossValidationView:
    infos = [info for info in task.metrics if any(info.key in part.metrics for part in found.parts)][:SHOWN]

    return CrossValidationView(
        about=[*spread(task, found), *([fitted(found)] if task.calibrates else [])],
        columns=[info.name for info in infos],
        rows=[
            (
                Path(part.run).name,
                f"{part.n:,}",
                [_cell(info, part) for info in infos],
            )
            for part in found.parts
        ],
        notes=[f"{note[0].upper()}{note[1:]}." for note in found.notes],
    )


def _cell(info: MetricInfo, part: FoldResult) -> str:
    return (wording.percent if info.percent else wording.decimal)(part.value(info.key))


def how(found: CrossValidation) -> str:
    """How each image was predicted."""
    times = "" if found.repeats == 1 else f", with folds that were drawn {found.repeats} times"
    mean = "" if found.repeats == 1 else f" A prediction is the mean of those of {found.repeats} networks."
    return (
        f"These are predictions for images that were held out: {found.folds}-fold cross-validation{times}. No network predicts "
        f"an image that it learned from, and groups and equal images stay in one fold.{mean}"
    )


def made_of(found: CrossValidation, recipe: Recipe) -> str:
    """What the model is, and how its networks were chosen."""
    networks = wording.plural(found.networks, "network")
    if found.final == "all":
        what = "network is" if found.networks == 1 else f"{networks} are"
        return (
            f"The model's {what} trained on all {found.images:,} images by the same recipe, with its last weights. The metrics "
            "are those of networks that learned from fewer images."
        )
    chosen = ""
    if recipe.data.val_fraction:
        chosen = " What chose their epochs was val, drawn from the other folds: images that are held out chose nothing."
    return (
        f"The model is the mean of the {networks} of the folds. The metrics are those of "
        f"{'single networks' if found.repeats == 1 else f'means of {found.repeats} networks'}; the model itself has seen all "
        f"images, so only others can judge it.{chosen}"
    )


def what_is_left(found: CrossValidation, splits: Mapping[str, SplitInfo], folder: str) -> tuple[str, str]:
    """What stands for test, and the command that evaluates more."""
    if "test" in splits:
        size = wording.plural(splits["test"].images, "test image")
        return f"The {size} took no part in this. When all choices are made:", f"petriscope evaluate {folder}"
    return (
        "There is no test split: all images were drawn into folds. If recipes were compared by these metrics, the best of them "
        "is flattered. To evaluate other labeled images:",
        f"petriscope evaluate {folder} --data SOURCE",
    )


def spread(task: Task, found: CrossValidation) -> list[str]:
    """How much the first metric differs between folds and between repeats, a sentence each."""
    info = task.metrics[0]
    values = [part.value(info.key) for part in found.parts]
    known = [value for value in values if value is not None]
    if not known:
        return []
    write = wording.percent if info.percent else wording.decimal
    out = [
        f"The {in_sentence(info)} of single networks on their folds is {write(min(known))} to {write(max(known))}, "
        f"{write(float(np.mean(known)))} on average."
    ]
    if found.repeats > 1:
        means = [
            float(np.average([part.value(info.key) or 0.0 for part in parts], weights=[part.n for part in parts]))
            for repeat in range(1, found.repeats + 1)
            if (parts := [part for part in found.parts if part.repeat == repeat])
        ]
        out.append(f"By repeat, it is {', '.join(map(write, means))}.")
    return out


def fitted(found: CrossValidation) -> str:
    more = ""
    if found.networks > 1 and found.final == "ensemble":
        more = " The mean of more networks is less confident than these, so it answers less often than it might."
    return (
        "Temperature, thresholds and prediction sets are fitted on the held-out predictions (cross-conformal prediction, Vovk, "
        f"2015), for a model that was not itself tested on new images: their guarantees are approximate.{more} Images are found "
        "to be out-of-distribution by their pixels alone, because features of images that networks learned from say nothing "
        "about new ones."
    )


def repeated(found: CrossValidation, folder: Path) -> str:
    """The command that trains again."""
    recipe = shlex.quote(str(folder.parent / "recipe.yaml"))
    more = "" if found.repeats == 1 else f" --repeats {found.repeats}"
    return f"petriscope train {recipe} --folds {found.folds}{more} --final {found.final} --out NEW"
