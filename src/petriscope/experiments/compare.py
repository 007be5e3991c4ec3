"""Runs against one another over the same images: grouped by recipe, each group tested against a baseline."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from petriscope.core.errors import RequestError
from petriscope.core.recipe import Recipe
from petriscope.metrics.statistics import (
    Sample,
    difference,
    holm,
)
from petriscope.run.comparison import LEVEL, Comparison, Contrast, Row
from petriscope.run.folder import Run, open_run
from petriscope.tasks import Task, find_task

SETTINGS_NAMED = 3  # in a label, or in a sentence on what differs


def compare(
    folders: Sequence[str | Path],
    split: str | None = None,
    against: str | Path | None = None,
    metric: str | None = None,
) -> Comparison:
    """Compare runs over the same images. Runs of one recipe with several seeds are one row.

    Args:
        folders: runs.
        split: train, val or test; None: test if all runs have it, else val.
        against: the run whose recipe is the baseline; None: the first.
        metric: what is compared; None: accuracy, or mean IoU where targets are masks.

    Raises:
        RequestError: a folder is no finished run, or has no predictions over the same images as the others.
    """
    if not folders:
        raise RequestError("name the runs to compare")
    paths = [Path(folder) for folder in (*([] if against is None else [against]), *folders)]
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
    """Compare groups of finished runs, one run a seed, under the labels given; see `compare`."""
    runs = [run for members in groups.values() for run in members]
    tables, task = _tables(runs, split), _task(runs)
    metric = metric or task.compared[0]
    if metric not in task.compared:
        raise RequestError(
            f"runs of the task {task.name} cannot be compared by {metric}; known: {', '.join(task.compared)}"
        )
    whole = task.sample(tables, metric)
    samples, start = {}, 0
    for label, members in groups.items():
        samples[label] = whole[start : start + len(members)]
        start += len(members)
    contrasts = _contrasts(samples, baseline)
    rows = [_row(label, groups[label], split, samples[label], contrasts.get(label)) for label in groups]
    notes = (*notes, *_notes(groups, split), *([task.resampled] if task.resampled else []))
    return Comparison(split, len(tables[0]["id"]), metric, baseline, tuple(rows), notes, task.name)


def settings_that_differ(one: Recipe, other: Recipe) -> dict[str, tuple[Any, Any]]:
    """Keys, dotted, with their two values; None where a recipe does not have the key. Names, texts and seeds aside."""
    first, second = _flat(_identity(one)), _flat(_identity(other))
    keys = [*first, *(key for key in second if key not in first)]
    pairs = {key: (first.get(key), second.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _identity(recipe: Recipe) -> dict[str, Any]:
    """What makes a recipe that recipe, as plain values."""
    return recipe.model_dump(mode="json", exclude={"name", "about", "seed"})


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if items is None:
        return {prefix: tree}
    out: dict[str, Any] = {}
    for key, value in items:
        out |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return out


def _contrasts(samples: Mapping[str, Sample], baseline: str) -> dict[str, Contrast]:
    found = {label: difference(s, samples[baseline]) for label, s in samples.items() if label != baseline}
    corrected = holm([one.p for one in found.values()])
    # Holm's strictest step is Bonferroni's: what is enough there is enough everywhere.
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
    if split == "val":
        notes.append("Val is there to choose on, and what was chosen on it looks better on it than it is.")
    if split == "train":
        notes.append("The models learned these images: metrics on train say nothing about new ones.")
    alone = [label for label, members in groups.items() if len(members) == 1]
    if len(groups) > 1 and len(alone) == len(groups):
        notes.append(
            "One seed each: the tests say which of these networks is better, not which recipe. "
            "Another seed may turn it round."
        )
    elif alone and len(groups) > 1:
        notes.append(f"One seed alone: {_few(alone)}. It is taken to vary by seed as what it is compared with does.")
    return notes


def _few(words: Sequence[str], most: int = 6) -> str:
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


# ------------------------------------------------------------------------------------------------ runs and groups


def _check_finished(run: Run) -> None:
    if not run.finished:
        raise RequestError(f"{run.folder} is not finished; go on with it: petriscope train --resume {run.folder}")


def _group(runs: Sequence[Run], split: str) -> dict[str, list[Run]]:
    """Runs by recipe, under labels that tell them apart."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_key(run, split), []).append(run)
    for members in groups.values():
        seeds: dict[int, Run] = {}
        for run in members:
            before = seeds.setdefault(run.recipe.seed, run)
            if before is not run:
                raise RequestError(
                    f"{before.folder} and {run.folder} are of one recipe and one seed: the same run twice says no more "
                    "than once; leave one out"
                )
    return _labeled(list(groups.values()), split)


def _key(run: Run, split: str) -> str:
    identity = _identity(run.recipe)
    # The same data may lie in another place.
    identity["data"]["source"] = _fingerprint(run)
    return json.dumps([identity, _tta(run, split)], sort_keys=True)


def _fingerprint(run: Run) -> str:
    return run.environment.data.fingerprint or str(run.recipe.data.source)


def _tta(run: Run, split: str) -> str:
    evaluation = run.results.split(split)
    return "none" if evaluation is None else evaluation.tta


def _task(runs: Sequence[Run]) -> Task:
    """The task of all runs.

    Raises:
        RequestError: they have several, or one whose runs cannot be compared.
    """
    names = {run.results.task: run for run in runs}
    if len(names) > 1:
        (one, first), (other, second), *_ = names.items()
        raise RequestError(f"{first.folder} is a run of {one}, {second.folder} of {other}; they cannot be compared")
    task = find_task(next(iter(names)))
    if not task.compared:
        raise RequestError(f"runs of the task {task.name} cannot be compared")
    return task


def _labeled(groups: Sequence[list[Run]], split: str) -> dict[str, list[Run]]:
    """Recipes of one name are told apart by what the first of them has otherwise."""
    out: dict[str, list[Run]] = {}
    firsts: dict[str, Run] = {}
    for members in groups:
        run = members[0]
        label = run.recipe.name
        first = firsts.setdefault(label, run)
        if first is not run:
            pairs = settings_that_differ(first.recipe, run.recipe)
            if _fingerprint(first) == _fingerprint(run):
                pairs.pop("data.source", None)
            words = [f"{key}={'default' if value is None else value}" for key, (_, value) in pairs.items()]
            if _tta(first, split) != _tta(run, split):
                words.append(f"tta={_tta(run, split)}")
            label = f"{label}, {_few(words, SETTINGS_NAMED) or 'other data'}"
        base, number = label, 2
        while label in out:
            label, number = f"{base} ({number})", number + 1
        out[label] = members
    return out


def _tables(runs: Sequence[Run], split: str) -> list[dict[str, np.ndarray]]:
    """The runs' predictions, of the same images with the same targets."""
    tables, task = [_table(run, split) for run in runs], _task(runs)
    first = tables[0]
    for run, table in zip(runs[1:], tables[1:], strict=True):
        if not np.array_equal(table["id"], first["id"]):
            shared = len(set(table["id"]) & set(first["id"]))
            raise RequestError(
                f"{run.folder} was evaluated on other {split} images than {runs[0].folder}: {shared:,} of "
                f"{len(first['id']):,} are the same. Runs can be compared where they have the same data and splits; if the "
                f"data have changed since: petriscope evaluate {run.folder}{_flag(split)}"
            )
        same = task.same_truth(first)
        if any(not np.array_equal(table.get(key, ()), first[key]) for key in same):
            raise RequestError(f"{run.folder} and {runs[0].folder} have other classes for the same {split} images")
    return tables


def _table(run: Run, split: str) -> dict[str, np.ndarray]:
    """A run's predictions on a split, sorted by image."""
    _check_finished(run)
    rows = run.predictions
    rows = rows[rows["split"] == split]
    if not len(rows):
        raise RequestError(
            f"{run.folder} has no predictions on {split}; petriscope evaluate {run.folder}{_flag(split)} adds them"
        )
    rows = rows.sort_values("id", kind="stable")
    return {str(column): rows[column].to_numpy() for column in rows}


def _flag(split: str) -> str:
    return "" if split == "test" else f" --split {split}"
