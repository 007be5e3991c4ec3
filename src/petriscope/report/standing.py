"""What the metrics of a run are based on, what is missing, and the commands that add it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from petriscope.core.recipe import Recipe
from petriscope.core.results import (
    Adaptation,
    CrossValidation,
    DataInfo,
    Epoch,
    Evaluation,
    Results,
    SplitInfo,
    TrainingSummary,
    about_groups,
)
from petriscope.explain.classification import NO_TIME
from petriscope.report import wording
from petriscope.report.adaptation import at_home, at_place
from petriscope.report.cross_validation import how, made_of, what_is_left
from petriscope.report.metrics import in_sentence, written
from petriscope.tasks import Task, find_task

UNSEEN = "The test images were used neither for training nor to choose the weights."
TTA_WORDS = {
    "mirror": "the mean over each image and its left-right mirror image (test-time augmentation: mirror)",
    "flips": "the mean over 4 mirror images of each image (test-time augmentation: flips)",
    "crops": "the mean over each image and five enlarged crops of it (test-time augmentation: crops)",
    "d4": "the mean over 8 flips and quarter turns of each image (test-time augmentation: d4)",
}

Statement = tuple[str, str]  # a sentence, and a command or nothing


def notes(evaluated: Mapping[str, Evaluation], recipe: Recipe) -> list[str]:
    """How the predictions were made and on which images, where that is not the usual case."""
    notes = []
    for tta, words in TTA_WORDS.items():
        names = [name for name, evaluation in evaluated.items() if evaluation.tta == tta]
        if names:
            where = "" if len(names) == len(evaluated) else f" on {' and '.join(names)}"
            notes.append(f"Each prediction{where} is {words}.")
    for name, evaluation in evaluated.items():
        groups = wording.images(evaluation.n, evaluation.groups, name)
        notes += [
            f"{groups[0].upper()}{groups[1:]}: {sentence}"
            for sentence in about_groups(evaluation.n, evaluation.groups, evaluation.largest_group)
        ]
        if evaluation.source and evaluation.source != recipe.data.origin:
            notes.append(
                f"The {name} images came from {evaluation.source}, not from the source of the training images."
            )
        if (seen := evaluation.seen) is not None and seen.left_out:
            notes.append(
                f"{wording.plural(seen.left_out, f'{name} image')} {'is' if seen.left_out == 1 else 'are'} left out, because "
                "the model learned from the same image or was fitted on it."
            )
        elif seen is not None and name == "test" and seen.train + seen.val:
            notes.append(
                f"The model learned from {seen.train:,} of the test images and was fitted on {seen.val:,}: metrics on test "
                "are too optimistic."
            )
        if name == "train":
            notes.append("The model was trained on the train images: metrics on train say nothing about new images.")
    return notes


def standing(
    task: Task,
    evaluated: Mapping[str, Evaluation],
    splits: Mapping[str, SplitInfo],
    training: TrainingSummary | None,
    history: Sequence[Epoch],
    recipe: Recipe,
    folder: str,
) -> list[Statement]:
    """What the headline is based on and what is missing, each with the command that adds it.

    Args:
        folder: of the run, quoted for a command.
    """
    out: list[Statement] = []
    if training is None:
        done = f"{wording.plural(len(history), 'epoch')} of {recipe.training.epochs} done"
        out.append((f"Training is not finished: {done}. To resume it:", f"petriscope train --resume {folder}"))
    if "test" in evaluated:
        out.append((UNSEEN, ""))
        if "val" in evaluated:
            info = task.metrics[0]
            metric = written(info, evaluated["val"].metric(info.key))
            out.append((f"On val, {_use_of_val(training)}, {in_sentence(info)} is {metric}.", ""))
        return out
    if "val" in evaluated:
        sentence = f"This metric is from val, {_use_of_val(training)}: expect slightly lower values on new images."
        out.append((sentence, ""))
    elif splits and "val" not in splits:
        out.append(("The data have no val split: no epoch was chosen, and the last weights are kept.", ""))
    elif "val" in splits and training is not None:
        out.append(("Val has not been evaluated. To add it:", f"petriscope evaluate {folder} --split val"))
    if training is None:
        out.append(("Metrics with intervals, mistakes and calibration are added when training is finished.", ""))
    elif "test" in splits:
        size = wording.plural(splits["test"].images, "test image")
        sentence = f"The {size} have not been evaluated yet. When all choices are made:"
        out.append((sentence, f"petriscope evaluate {folder}"))
    else:
        sentence = (
            "There is no test split, so nothing here was measured on images that played no part in choices. "
            "To evaluate other labeled images:"
        )
        out.append((sentence, f"petriscope evaluate {folder} --data SOURCE"))
    return out


def left_out(results: Results, recipe: Recipe, folder: str) -> list[Statement]:
    """What a training with a budget had no time for, and how to make up for it.

    Args:
        folder: of the run, quoted for a command.
    """
    val, budget, out = results.val, results.budget, list[Statement]()
    if val is None or budget is None:
        return out
    explained, lacking = val.explanations, []
    if explained is not None and explained.reason == NO_TIME:
        lacking += ["explanations" if explained.method is None else "checks of the explanations"]
    if lacking and val.errors is not None and val.errors.neighbors is None and (val.value("accuracy") or 0.0) < 1:
        lacking += ["training images that are similar to mistakes"]
    tests = find_task(val.task).has_stress_test and recipe.evaluation.stress != "off"
    stress = tests and results.stress.get("val") is None
    lacking += ["the stress test"] * stress
    if lacking:
        again = f"petriscope evaluate {folder} --split val" + " --stress" * stress
        out.append((f"there was no time for {', '.join(lacking)}", again))
    if (seen := budget.detector_images) is not None:
        what = f"there was no time to fit the detector of out-of-distribution images on more than {seen:,} images"
        out.append((what, f"petriscope calibrate {folder}"))
    return out


def standing_of_adapted(
    task: Task, evaluated: Mapping[str, Evaluation], splits: Mapping[str, SplitInfo], adapted: Adaptation, folder: str
) -> list[Statement]:
    """The same for a run that was adapted to another place, where its headline is from. Its val and test are of the old one.

    Args:
        folder: of the run, quoted for a command.
    """
    out = [(sentence, "") for sentence in (at_place(adapted), *at_home(adapted))]
    out.append(
        (
            f"How to adapt was chosen on these images among {len(adapted.tried)} settings, so the accuracy after adapting is "
            "slightly optimistic. To evaluate other labeled images from there:",
            f"petriscope evaluate {folder} --data SOURCE",
        )
    )
    info = task.metrics[0]
    if "test" in evaluated:
        metric = written(info, evaluated["test"].metric(info.key))
        out.append((f"On the test images of {adapted.base}, {in_sentence(info)} is {metric}.", ""))
    elif "test" in splits:
        size = wording.plural(splits["test"].images, "test image")
        out.append((f"The {size} of {adapted.base} have not been evaluated yet:", f"petriscope evaluate {folder}"))
    return out


def standing_of_folds(
    task: Task,
    evaluated: Mapping[str, Evaluation],
    splits: Mapping[str, SplitInfo],
    found: CrossValidation,
    recipe: Recipe,
    folder: str,
) -> list[Statement]:
    """The same for a run that was judged by cross-validation.

    Args:
        folder: of the run, quoted for a command.
    """
    out: list[Statement] = []
    if "test" in evaluated:
        info = task.metrics[0]
        metric = written(info, found.pooled.metric(info.key))
        out.append((UNSEEN, ""))
        out.append((f"On images that were held out by cross-validation, {in_sentence(info)} is {metric}.", ""))
        return [*out, (made_of(found, recipe), "")]
    return [(how(found), ""), (made_of(found, recipe), ""), what_is_left(found, splits, folder)]


def _use_of_val(training: TrainingSummary | None) -> str:
    if training is not None and training.kept == "best":
        return "which chose the weights that are kept"
    return "which is meant for making choices"


def alarm(task: Task, results: Results, data: DataInfo) -> Statement | None:
    """A warning where test is so far below val that chance does not explain it, by the task's first metric."""
    if results.test is None or results.val is None:
        return None
    info = task.metrics[0]
    test, val = (evaluation.metric(info.key) for evaluation in (results.test, results.val))
    if test.value is None or val.value is None or test.ci95 is None or val.ci95 is None:
        return None
    high, low = test.ci95[1], val.ci95[0]
    if high is None or low is None or high >= low or not info.higher_is_better:
        return None
    gap = f"{100 * (val.value - test.value):.1f} points" if info.percent else f"{val.value - test.value:.4f}"
    return (
        f"The {in_sentence(info)} on test is {gap} below that on val, and their intervals do not overlap: this is more "
        "than chance. The splits may differ in origin, or val may contain copies of training images. To look for them:",
        f"petriscope audit {'SOURCE' if data.domains or not data.source else shlex.quote(data.source)}",
    )
