"""An evaluation by the values of a column: the scanner, the site, the stain, the day, or the domain that images are from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from petriscope.core.errors import RequestError, near, shown
from petriscope.core.results import FEW_IMAGES, Breakdown, Subset
from petriscope.data.imageset import ImageSet
from petriscope.metrics.intervals import group_index
from petriscope.tasks import Task

DOMAIN, GROUP = "domain", "group"
MOST_NUMBERS = 50  # different numbers in a column whose values count as categories


def columns_of(images: ImageSet) -> dict[str, np.ndarray]:
    """The columns that images can be told apart by, [N] strings each: those of the source, and their groups."""
    return {**({} if images.groups is None else {GROUP: images.groups}), **images.columns}


def check_column(images: ImageSet, column: str) -> None:
    """Check that results can be given by a column, before anything is predicted.

    Raises:
        RequestError: the images do not have it, all its values are empty, or it has too many different numbers.
    """
    known = columns_of(images)
    if not images.task.judges_subsets:
        raise RequestError(f"--by: results of the task {images.task.name} cannot be given by a column")
    if column not in known:
        have = near(column, known) if known else "they have none; a table (CSV) can have any"
        raise RequestError(f"--by: the images have no column {shown(column)}; {have}")
    values = {str(value) for value in known[column].tolist()} - {""}
    if not values:
        raise RequestError(f"--by: the column {column} is empty for all {len(images):,} images")
    if len(values) > MOST_NUMBERS and all(map(_is_number, values)):
        raise RequestError(
            f"--by: the column {column} has {len(values):,} different numbers, and at most {MOST_NUMBERS} count as categories; "
            "add a column of ranges to the table, such as 0-9, 10-19, and name that"
        )


def break_down(task: Task, outputs: Any, images: ImageSet, column: str, resamples: int) -> Breakdown:
    """Judge the images of each value of a column on their own.

    The interval of a value is over the groups of its images, where images are in groups. If every value is one group, as
    in the column of the groups, it is over the images of the group, and about more images of the same group.

    Args:
        outputs: of all images, from `petriscope.tasks.base.Task.collect`.
        column: one that `check_column` has accepted.
        resamples: of the bootstrap.
    """
    values = columns_of(images)[column].astype(str)
    names, place = np.unique(values, return_inverse=True)
    order = np.argsort(place, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(place))[:-1])
    subsets = {name: rows for name, rows in zip(names.tolist(), members, strict=True) if name}
    groups = None if group_index(images.groups) is None else images.groups
    within = groups is not None and _same_partition(groups, subsets.values())
    judged = []
    for name, rows in subsets.items():
        some = None if groups is None or within else groups[rows]
        judged.append(
            Subset.model_validate({"name": name, **task.judge_subset(outputs, images, rows, some, resamples)})
        )
    first = task.metrics[0].key

    def score(row: Subset) -> float:
        value = row.value(first)
        return math.inf if value is None else value

    judged.sort(key=score)
    defined = [row for row in judged if math.isfinite(score(row))]
    enough = [row for row in defined if row.n >= FEW_IMAGES]
    named = enough if len(enough) > 1 else defined
    return Breakdown(
        rows=tuple(judged),
        empty=int((values == "").sum()),
        worst=named[0].name if len({score(row) for row in named}) > 1 else None,
        within=within,
    )


def _same_partition(groups: np.ndarray, subsets: Iterable[np.ndarray]) -> bool:
    """Whether each subset is all images of one group."""
    found = [set(groups[rows].tolist()) for rows in subsets]
    return all(len(each) == 1 for each in found) and len(found) == len(set().union(*found))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
