"""Comparison of runs on the same images: runs are grouped by recipe, and each group is tested against a baseline."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from petriscope.core.arguments import checked_arguments
from petriscope.core.errors import RequestError, command, listed
from petriscope.core.files import parsing, user_path, user_paths
from petriscope.core.recipe import Recipe, flattened
from petriscope.core.results import about_groups
from petriscope.metrics.statistics import Sample, difference, holm
from petriscope.run.comparison import LEVEL, Comparison, Contrast, Row
from petriscope.run.folder import Run, open_run
from petriscope.tasks import Task, find_task

PLANNED = ("training.corrections", "training.ended")  # what a planned training notes of its course
SOURCE = re.compile(r"data\.(source|sources\..*\.source)")  # keys of places, where the same data may be in others
SETTINGS_NAMED = 3  # settings that a label names at most


@checked_arguments
def compare(
    folders: Sequence[str | PathLike[str]],
    split: str | None = None,
    against: str | Path | None = None,
    metric: str | None = None,
) -> Comparison:
    """Compare runs on the same images. Runs of one recipe with different seeds form one row.

    Args:
        folders: run folders.
        split: train, val or test; None: test if all runs were evaluated on it, else val.
        against: the run whose recipe is the baseline; None: the first.
        metric: the metric to compare; None: the task's first, such as accuracy or mean IoU.

    Raises:
        RequestError: a folder is not a finished run, or has no predictions for the same images as the others.
    """
    if not folders:
        raise RequestError("name the runs to compare")
    paths = [*([] if against is None else [user_path(against)]), *user_paths(folders)]
    runs = [open_run(path) for path in {path.resolve(): path for path in paths}.values()]
    for run in runs:
        _check_finished(run)
    split = split or ("test" if all(run.results.test is not None for run in runs) else "val")
    groups = _group(runs, split)
    return compare_groups(groups, next(iter(groups)), split, metric)


def compare_groups(
    groups: Mapping[str, Sequence[Run]],
    baseline: str,
    split: str,
    metric: str | None = None,
    notes: Iterable[str] = (),
) -> Comparison:
    """Compare groups of finished runs, by label, with one run per seed; see `compare`."""
    runs = [run for members in groups.values() for run in members]
    tables, task = _tables(runs, split), _task(runs)
    metric = compared_metric(task, metric)
    with parsing(f"predictions.parquet of {listed([str(run.folder) for run in runs])}", "evaluate the runs again"):
        whole = task.sample(tables, metric)
    samples, start = {}, 0
    for label, members in groups.items():
        samples[label] = whole[start : start + len(members)]
        start += len(members)
    contrasts = _contrasts(samples, baseline)
    rows = [_row(label, groups[label], split, samples[label], contrasts.get(label)) for label in groups]
    notes = (*notes, *_notes(groups, split), *about_groups(whole.images, whole.groups, whole.largest_group))
    return Comparison(split, len(tables[0]["id"]), metric, baseline, tuple(rows), notes, task.name, whole.groups)


def compared_metric(task: Task, metric: str | None) -> str:
    """The metric to compare runs by; None: the task's first.

    Raises:
        RequestError: runs of the task cannot be compared, or not by this metric.
    """
    if not task.compared:
        raise RequestError(f"runs of the task {task.name} cannot be compared")
    metric = metric or task.compared[0]
    if metric not in task.compared:
        raise RequestError(
            f"runs of the task {task.name} cannot be compared by {metric}; known: {', '.join(task.compared)}"
        )
    return metric


def settings_that_differ(one: Recipe, other: Recipe) -> dict[str, tuple[Any, Any]]:
    """Dotted keys with their two values; None if a recipe does not have the key. Name, about, seed and trackers are ignored."""
    return differing(_identity(one), _identity(other))


def differing(one: Any, other: Any) -> dict[str, tuple[Any, Any]]:
    """Dotted keys at which two trees of plain values differ, with both values; None if a tree does not have the key."""
    first, second = flattened(one), flattened(other)
    keys = [*first, *(key for key in second if key not in first)]
    pairs = {key: (first.get(key), second.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def in_words(pairs: Mapping[str, tuple[Any, Any]]) -> str:
    """Settings that were one thing and are another now, as a message lists them."""
    was_now = {key: ["not set" if value is None else value for value in pair] for key, pair in pairs.items()}
    return "; ".join(f"{key} was {was}, is {now}" for key, (was, now) in was_now.items())


def _identity(recipe: Recipe) -> dict[str, Any]:
    """The settings of a recipe that decide what is trained, except for the seed, as plain values."""
    return recipe.model_dump(mode="json", exclude={"name": True, "about": True, "seed": True, "training": {"track"}})


def _contrasts(samples: Mapping[str, Sample], baseline: str) -> dict[str, Contrast]:
    found = {label: difference(s, samples[baseline]) for label, s in samples.items() if label != baseline}
    corrected = holm([one.p for one in found.values()])
    # Holm's strictest step is Bonferroni's level, so a sample that is large enough for it is large enough for all.
    alpha = LEVEL / max(len(found), 1)
    return {
        label: Contrast(one, p, one.needed(alpha)) for (label, one), p in zip(found.items(), corrected, strict=True)
    }


def _row(label: str, runs: Sequence[Run], split: str, sample: Sample, contrast: Contrast | None) -> Row:
    results = [run.results for run in runs]
    seconds = [None if result.training is None else result.training.seconds for result in results]
    cost, evaluations = results[0].cost, [result.split(split) for result in results]
    others = [info.key for info in _task(runs).metrics if info.key != sample.metric]
    return Row(
        label=label,
        runs=tuple(str(run.folder) for run in runs),
        seeds=tuple(run.recipe.seed for run in runs),
        values=tuple(sample.values.tolist()),
        mean=sample.mean,
        sd=sample.sd,
        ci95=sample.ci95,
        others={key: _mean([None if e is None else e.value(key) for e in evaluations]) for key in others},
        parameters=None if cost is None else cost.parameters,
        multiply_adds=None if cost is None else cost.multiply_adds,
        seconds=_mean(seconds),
        contrast=contrast,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _notes(groups: Mapping[str, Sequence[Run]], split: str) -> list[str]:
    notes = []
    if any(_left_out(run, split) for members in groups.values() for run in members):
        notes.append("Images that a model has seen in its training are left out.")
    if split == "val":
        notes.append("Training chooses on val, so results on val are better than on new images.")
    if split == "train":
        notes.append("The models were trained on these images: metrics on train say nothing about new images.")
    alone = [label for label, members in groups.items() if len(members) == 1]
    if len(groups) > 1 and len(alone) == len(groups):
        notes.append(
            "There is one seed per recipe: the tests say which of these networks is better, not which recipe. "
            "Other seeds may reverse the result."
        )
    elif alone and len(groups) > 1:
        notes.append(
            f"Only one seed: {listed(alone)}. Its variance between seeds is assumed to be that of the other recipe."
        )
    return notes


# ------------------------------------------------------------------------------------------------ runs and groups


def _check_finished(run: Run) -> None:
    if not run.finished:
        raise RequestError(f"{run.folder} is not finished; resume it: {command('train', '--resume', run.folder)}")


def _group(runs: Sequence[Run], split: str) -> dict[str, list[Run]]:
    """Runs grouped by recipe, under distinct labels."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_key(run, split), []).append(run)
    for members in groups.values():
        seeds: dict[int, Run] = {}
        for run in members:
            before = seeds.setdefault(run.recipe.seed, run)
            if before is not run:
                raise RequestError(
                    f"{before.folder} and {run.folder} have the same recipe and the same seed; leave one of them out"
                )
    return _labeled(list(groups.values()), split)


def _key(run: Run, split: str) -> str:
    identity = _identity(run.recipe)
    # The same data may be stored in different places.
    identity["data"]["source"] = _fingerprint(run)
    for each in (identity["data"]["sources"] or {}).values():
        each["source"] = ""
    return json.dumps([identity, _tta(run, split)], sort_keys=True)


def _fingerprint(run: Run) -> str:
    return run.environment.data.fingerprint or run.recipe.data.origin


def _tta(run: Run, split: str) -> str:
    evaluation = run.results.split(split)
    return "none" if evaluation is None else evaluation.tta


def _task(runs: Sequence[Run]) -> Task:
    """The task of all runs.

    Raises:
        RequestError: the runs have different tasks.
    """
    names = {run.results.task: run for run in runs}
    if len(names) > 1:
        (one, first), (other, second), *_ = names.items()
        raise RequestError(f"{first.folder} is a {one} run and {second.folder} a {other} run; they cannot be compared")
    return find_task(next(iter(names)))


def _labeled(groups: Sequence[list[Run]], split: str) -> dict[str, list[Run]]:
    """Label groups by the names of their recipes. Recipes with the same name are told apart by their settings."""
    out: dict[str, list[Run]] = {}
    firsts: dict[str, Run] = {}
    for members in groups:
        run = members[0]
        label = run.recipe.name
        first = firsts.setdefault(label, run)
        if first is not run:
            pairs = settings_that_differ(first.recipe, run.recipe)
            pairs = {key: pair for key, pair in pairs.items() if not key.startswith(PLANNED)}
            if _fingerprint(first) == _fingerprint(run):
                pairs = {key: pair for key, pair in pairs.items() if not SOURCE.fullmatch(key)}
            words = [f"{key}={'default' if value is None else value}" for key, (_, value) in pairs.items()]
            if _tta(first, split) != _tta(run, split):
                words.append(f"tta={_tta(run, split)}")
            label = f"{label}, {listed(words, SETTINGS_NAMED) or 'other data'}"
        base, number = label, 2
        while label in out:
            label, number = f"{base} ({number})", number + 1
        out[label] = members
    return out


def _tables(runs: Sequence[Run], split: str) -> list[dict[str, np.ndarray]]:
    """The predictions of the runs, which must be for the same images with the same targets."""
    tables, task = _unseen(runs, [_table(run, split) for run in runs], split), _task(runs)
    first = tables[0]
    if not len(first["id"]):
        raise RequestError(
            f"{listed([str(run.folder) for run in runs])}: no predictions on {split} are left to compare, because the runs share "
            "no image that none of them has seen"
        )
    for run, table in zip(runs[1:], tables[1:], strict=True):
        if not np.array_equal(table["id"], first["id"]):
            shared = len(set(table["id"]) & set(first["id"]))
            raise RequestError(
                f"{run.folder} was evaluated on other {split} images than {runs[0].folder}: {shared:,} of "
                f"{len(first['id']):,} are the same. Only runs with the same data and splits can be compared. If the data "
                f"have changed since, evaluate again: {_evaluate(run, split)}"
            )
        same = task.same_truth(first)
        if any(not np.array_equal(table.get(key, ()), first[key]) for key in same):
            raise RequestError(f"{run.folder} and {runs[0].folder} have different targets for the same {split} images")
    return tables


def _unseen(runs: Sequence[Run], tables: list[dict[str, np.ndarray]], split: str) -> list[dict[str, np.ndarray]]:
    """Only the images that no model has seen, where runs differ by the images that were left out for this reason."""
    union = reduce(np.union1d, [table["id"] for table in tables])
    if any(len(union) - len(table["id"]) > _left_out(run, split) for run, table in zip(runs, tables, strict=True)):
        return tables
    shared = reduce(np.intersect1d, [table["id"] for table in tables])
    kept = [np.isin(table["id"], shared) for table in tables]
    return [{key: values[rows] for key, values in table.items()} for table, rows in zip(tables, kept, strict=True)]


def _left_out(run: Run, split: str) -> int:
    """How many images of the split the run's metrics leave out because its model has seen them."""
    found = run.results.split(split)
    return found.seen.left_out if found is not None and found.seen is not None else 0


def _table(run: Run, split: str) -> dict[str, np.ndarray]:
    """A run's predictions on a split, sorted by image."""
    _check_finished(run)
    rows = run.read_predictions(_task([run]).compares)
    rows = rows[rows["split"] == split]
    if not len(rows) and split == "val" and run.results.cross_validation is not None:
        raise RequestError(
            f"{run.folder} was judged by cross-validation and has no val, and its folds share training images, which tests "
            "on images do not know of; compare on test: evaluate the runs on it, if their source has one"
        )
    if not len(rows):
        raise RequestError(f"{run.folder} has no predictions on {split}; add them: {_evaluate(run, split)}")
    rows = rows.sort_values("id", kind="stable")
    return {str(column): rows[column].to_numpy() for column in rows}


def _evaluate(run: Run, split: str) -> str:
    return command("evaluate", run.folder, *([] if split == "test" else ["--split", split]))
