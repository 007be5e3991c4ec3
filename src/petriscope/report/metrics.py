"""The metrics of a task: their names in a sentence, and the table of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from petriscope.core.results import Evaluation, Metric
from petriscope.metrics.intervals import group_index
from petriscope.report import wording
from petriscope.tasks import MetricInfo, Task

if TYPE_CHECKING:
    import pandas as pd

MOST_CLASSES_IN_MATRIX = 60  # a larger matrix is not readable
CONFUSIONS_NAMED = 5


@dataclass(frozen=True)
class MetricRow:
    """A metric: its name and meaning, and per split its value and interval as text."""

    name: str
    meaning: str
    cells: list[tuple[str, str]]


def groups_of(rows: pd.DataFrame) -> np.ndarray | None:
    """The groups of the images in a table of predictions, as `petriscope.metrics.intervals.group_index` has them."""
    return group_index(rows["group"].to_numpy()) if "group" in rows else None


def confusions(confusion: np.ndarray, classes: Sequence[str]) -> list[str]:
    """The most frequent mistakes in a confusion matrix, int64 [K, K], a sentence each."""
    off = confusion.copy()
    np.fill_diagonal(off, 0)
    out = []
    for index in np.argsort(-off, axis=None, kind="stable")[:CONFUSIONS_NAMED]:
        i, j = np.unravel_index(index, off.shape)
        if count := off[i, j]:
            total = confusion[i].sum()
            share = wording.percent(count / total, 1)
            out.append(f"{classes[i]} predicted as {classes[j]}: {count:,} of {total:,} ({share})")
    return out


def metric_rows(task: Task, evaluated: Mapping[str, Evaluation]) -> list[MetricRow]:
    """The table of all metrics of a task; a metric that is not defined is a dash."""
    rows = []
    for info in task.metrics:
        found = [evaluation.metric(info.key) for evaluation in evaluated.values()]
        if any(info.key in evaluation.metrics for evaluation in evaluated.values()):
            cells = [
                (wording.NONE, f"({why})") if (why := evaluation.undefined.get(info.key)) else _cell(info, metric)
                for evaluation, metric in zip(evaluated.values(), found, strict=True)
            ]
            rows.append(MetricRow(info.name, info.meaning, cells))
    return rows


def in_sentence(info: MetricInfo) -> str:
    """The name of a metric within a sentence: ``mean IoU``, ``AUC``."""
    acronym = info.name[1:2].isupper()
    return info.name if acronym else info.name[:1].lower() + info.name[1:]


def written(info: MetricInfo, metric: Metric) -> str:
    """The value of a metric and its interval, if there is one."""
    write = wording.percent_with_interval if info.percent else wording.decimal_with_interval
    return write(metric.value, metric.ci95)


def _cell(info: MetricInfo, metric: Metric) -> tuple[str, str]:
    value, _, interval = written(info, metric).partition(" (")
    return value, f"({interval}" if interval else ""
