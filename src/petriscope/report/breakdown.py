"""The tables of an evaluation by the values of a column, for the page and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from petriscope.core.results import FEW_IMAGES, Breakdown, Evaluation, Subset
from petriscope.report import wording
from petriscope.report.charts import interval_mark
from petriscope.report.metrics import in_sentence, written
from petriscope.tasks import Task

LISTED = 50  # rows of a table; of more, the first `SHOWN` are shown
SHOWN = 20


@dataclass(frozen=True)
class Row:
    """One value: its images in words, its metrics as text, and the first of them drawn on a scale."""

    name: str
    images: str
    cells: list[str]
    mark: Markup
    worst: bool


@dataclass(frozen=True)
class BreakdownView:
    """One table.

    Args:
        metrics: the names of the columns of metrics.
        floor: where the scale begins.
        sentences: the worst value, and what the table leaves out.
    """

    split: str
    column: str
    metrics: list[str]
    floor: str
    rows: list[Row]
    sentences: list[str]


def breakdown_views(task: Task, evaluated: Mapping[str, Evaluation]) -> list[BreakdownView]:
    """All tables of the evaluated splits, those by domain first."""
    views = [
        breakdown_view(task, split, column, found)
        for split, evaluation in evaluated.items()
        for column, found in evaluation.by.items()
    ]
    return sorted(views, key=lambda view: view.column != "domain")


def breakdown_view(task: Task, split: str, column: str, found: Breakdown) -> BreakdownView:
    """The table of one split by one column."""
    infos = [info for info in task.metrics if any(info.key in row.metrics for row in found.rows)]
    shown = found.rows if len(found.rows) <= LISTED else found.rows[:SHOWN]
    ends = [(row.metric(infos[0].key).ci95 or (row.value(infos[0].key),))[0] for row in shown] if infos else []
    floor = max(0.0, float(np.floor(10 * min((end for end in ends if end is not None), default=0.0)) / 10))
    rows = [
        Row(
            name=row.name,
            images=wording.images(row.n, row.groups),
            cells=[written(info, row.metric(info.key)) for info in infos],
            mark=interval_mark(row.value(infos[0].key), row.metric(infos[0].key).ci95, floor) if infos else Markup(""),
            worst=row.name == found.worst,
        )
        for row in shown
    ]
    names = [info.name for info in infos]
    return BreakdownView(split, column, names, wording.percent(floor, 0), rows, _sentences(task, column, found))


def _sentences(task: Task, column: str, found: Breakdown) -> list[str]:
    out = []
    info = task.metrics[0]
    worst = next((row for row in found.rows if row.name == found.worst), None)
    if worst is not None:
        out.append(
            f"Worst by {column}: {worst.name}, {in_sentence(info)} {written(info, worst.metric(info.key))} of "
            f"{wording.images(worst.n, worst.groups)}."
        )
    elif len(found.rows) == 1:
        out.append(f"All of these images have the same {column}, {found.rows[0].name}.")
    few = sum(row.n < FEW_IMAGES for row in found.rows)
    if few and worst is not None and worst.n >= FEW_IMAGES:
        have = "has" if few == 1 else "have"
        out.append(
            f"{wording.plural(few, 'value')} {have} fewer than {FEW_IMAGES} images, too few to be named as the worst."
        )
    if len(found.rows) > LISTED:
        out.append(f"The {SHOWN} worst of {len(found.rows):,} values are shown; results.json and --json have all.")
    if found.within:
        out.append("Each value is one group of images, so its interval is about more images of the same group.")
    elif any(_is_one_group(row) for row in found.rows):
        out.append("Where all images are of one group, there is no interval.")
    if found.empty:
        is_empty = "has" if found.empty == 1 else "have"
        out.append(
            f"{wording.plural(found.empty, 'image')} {is_empty} no {column}, and {'is' if found.empty == 1 else 'are'} in no row."
        )
    return out


def _is_one_group(row: Subset) -> bool:
    return row.groups == 1
