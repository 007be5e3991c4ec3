"""The sections on the predictions of a task that has no module of its own: a table per class.

`petriscope.report.page.TaskPage` says what each function is for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from petriscope.core.results import Evaluation, Explanations
from petriscope.report import wording
from petriscope.report.explanations import Maps
from petriscope.report.headline import Headline
from petriscope.report.metrics import in_sentence
from petriscope.tasks import MetricInfo, Task

if TYPE_CHECKING:
    import pandas as pd

TEMPLATE = "_generic.html"
SECTIONS = (("classes", "Classes"),)
ABOUT_METRICS = "With 95 % intervals where they were computed."
PAIRED_TEST = "paired test"


@dataclass(frozen=True)
class GenericView:
    """The metrics per class of one split.

    Args:
        images: how many there are, in words.
        columns: names of the metrics.
        rows: per class its name, how much there is of it, and the metrics.
        counted: what classes are counted in; empty where they are not.
    """

    split: str
    images: str
    counted: str
    columns: list[str]
    rows: list[tuple[str, str, list[str]]]


def view(
    task: Task,
    split: str,
    evaluation: Evaluation,
    folder: str,
    rows: pd.DataFrame,
    gallery: Mapping[str, np.ndarray],
) -> GenericView:
    infos = _infos(task, evaluation)
    amounts = {name: one.n if one.pixels is None else one.pixels for name, one in evaluation.per_class.items()}
    cells = [
        (name, wording.count(amounts[name]), [_write(info, one.value(info.key)) for info in infos])
        for name, one in evaluation.per_class.items()
    ]
    counted = task.counted if any(amount is not None for amount in amounts.values()) else ""
    images = wording.images(evaluation.n, evaluation.groups)
    return GenericView(split, images, counted, [info.name for info in infos], cells)


def headline(task: Task, split: str, evaluation: Evaluation) -> Headline:
    info = task.metrics[0]
    metric = evaluation.metric(info.key)
    interval = wording.span(metric.ci95) if info.percent else wording.span(metric.ci95, scale=1, decimals=4)
    tail = f" (95 % interval {interval})" if interval else ""
    return Headline(
        _write(info, metric.value),
        f"{in_sentence(info)} on {wording.images(evaluation.n, evaluation.groups, split)}{tail}.",
    )


def overlays(gallery: Mapping[str, np.ndarray], classes: int) -> Sequence[Sequence[np.ndarray]]:
    return ()


def maps(split: str, found: Explanations, rows: pd.DataFrame, gallery: Mapping[str, np.ndarray]) -> Maps:
    return Maps()


def _infos(task: Task, evaluation: Evaluation) -> list[MetricInfo]:
    keys = dict.fromkeys(key for one in evaluation.per_class.values() for key in one.metrics)
    return [task.info(key) for key in keys]


def _write(info: MetricInfo, value: float | None) -> str:
    return wording.percent(value) if info.percent else wording.decimal(value)
