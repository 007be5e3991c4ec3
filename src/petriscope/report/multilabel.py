"""The sections on predictions of any number of labels per image: metrics and answers per class, and the surest mistakes.

`petriscope.report.page.TaskPage` says what each function is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from petriscope.core.names import label_text
from petriscope.core.results import ClassMetrics, Evaluation, LabelAnswers
from petriscope.report import generic, wording
from petriscope.report.charts import Thumbnail, thumbnail
from petriscope.report.generic import headline, maps, overlays
from petriscope.report.metrics import written
from petriscope.tasks import MetricInfo, Task
from petriscope.tasks.multilabel import PROBABILITY, SAID, TRUE

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ABOUT_METRICS", "PAIRED_TEST", "SECTIONS", "TEMPLATE", "headline", "maps", "overlays", "view"]

TEMPLATE = "_multilabel.html"
SECTIONS = (("classes", "Classes"), ("answers", "Answers"), ("mistakes", "Mistakes"))
ABOUT_METRICS = (
    "With 95 % intervals: Wilson's for exact match, the bootstrap for the others. They are over images, or over groups where "
    "images belong to groups. Means over classes leave out classes that no image has."
)
PAIRED_TEST = generic.PAIRED_TEST
SHOWN_ERRORS = (0.01, 0.05)  # error rates for which answers are shown
WITH_INTERVALS = ("ap", "auc", "f1")


@dataclass(frozen=True)
class Mistake:
    """An image of which a label was said wrongly.

    Args:
        true, predicted: its labels.
        wrong: the label that is wrong with the least doubt, and its probability.
    """

    shown: Thumbnail
    id: str
    true: str = ""
    predicted: str = ""
    wrong: str = ""


@dataclass(frozen=True)
class MultilabelView:
    """The predictions on one split.

    Args:
        images: how many there are, in words.
        columns: names of the metrics per class; ``classes``: name of the class, images that have it, and their values.
        rates: error rates that answers are shown for, in words.
        answers: per class its name, and for each rate what is answered "present" and "absent", in words.
        mistakes: those to show; ``mistakes_total``: images of which a label is wrong; None without predictions.
        evaluate: the command that evaluates the split.
    """

    split: str
    n: int
    images: str
    columns: list[str]
    classes: list[tuple[str, str, list[str]]]
    rates: list[str]
    answers: list[tuple[str, list[str]]]
    mistakes: list[Mistake]
    mistakes_total: int | None
    evaluate: str


def view(
    task: Task,
    split: str,
    evaluation: Evaluation,
    folder: str,
    rows: pd.DataFrame,
    gallery: Mapping[str, np.ndarray],
) -> MultilabelView:
    keys = dict.fromkeys(key for one in evaluation.per_class.values() for key in one.metrics)
    infos = [task.info(key) for key in keys]
    wrong = _wrong(rows, [*evaluation.per_class])
    return MultilabelView(
        split=split,
        n=evaluation.n,
        images=wording.images(evaluation.n, evaluation.groups),
        columns=[info.name for info in infos],
        classes=[
            (name, wording.count(one.n), [_cell(info, one) for info in infos])
            for name, one in evaluation.per_class.items()
        ],
        rates=[wording.percent(rate, 0) for rate in SHOWN_ERRORS],
        answers=_answers(evaluation),
        mistakes=_mistakes(split, rows, [*evaluation.per_class], gallery),
        mistakes_total=None if wrong is None else int(wrong.any(1).sum()),
        evaluate=f"petriscope evaluate {folder}" + ("" if split == "test" else f" --split {split}"),
    )


def _cell(info: MetricInfo, one: ClassMetrics) -> str:
    metric = one.metric(info.key)
    if info.key in WITH_INTERVALS:
        return written(info, metric)
    return wording.percent(metric.value) if info.percent else wording.decimal(metric.value)


def _answers(evaluation: Evaluation) -> list[tuple[str, list[str]]]:
    found = {(row.name, row.answer, row.max_error): row for row in evaluation.answers or ()}
    return [
        (name, [_said(found.get((name, word, rate))) for rate in SHOWN_ERRORS for word in ("present", "absent")])
        for name in (evaluation.per_class if found else ())
    ]


def _said(row: LabelAnswers | None) -> str:
    if row is None:
        return wording.NONE
    if not row.guaranteed:
        return "not guaranteed"
    return f"{row.answered:,} of {row.said:,}, {row.wrong:,} wrong"


def _wrong(rows: pd.DataFrame, classes: list[str]) -> np.ndarray | None:
    """Which labels of the images were said wrongly, bool [N, K]; None without predictions."""
    if not len(rows) or not {f"{start}{name}" for start in (TRUE, SAID) for name in classes} <= set(rows.columns):
        return None
    return np.stack([(rows[f"{TRUE}{name}"] != rows[f"{SAID}{name}"]).to_numpy() for name in classes], 1)


def _mistakes(split: str, rows: pd.DataFrame, classes: list[str], gallery: Mapping[str, np.ndarray]) -> list[Mistake]:
    images, ids = gallery.get(f"mistakes_{split}"), gallery.get(f"mistakes_{split}_ids")
    if images is None or ids is None:
        return []
    by_id = {str(row["id"]): row for row in rows.to_dict("records")} if _wrong(rows, classes) is not None else {}
    return [
        Mistake(thumbnail(pixels), str(name), *(_in_words(by_id[str(name)], classes) if str(name) in by_id else ()))
        for pixels, name in zip(images, ids, strict=True)
    ]


def _in_words(row: Mapping[Any, Any], classes: list[str]) -> tuple[str, str, str]:
    """The labels of an image, those that it is said to have, and the surest mistake."""
    true, said = ([name for name in classes if row[f"{start}{name}"] == 1] for start in (TRUE, SAID))
    sure = {
        name: row[f"{PROBABILITY}{name}"] if name in said else 1 - row[f"{PROBABILITY}{name}"]
        for name in classes
        if (name in true) != (name in said)
    }
    worst = max(sure, key=lambda name: sure[name], default="")
    wrong = f"{worst} {wording.percent(row[f'{PROBABILITY}{worst}'], 1)}" if worst else ""
    return label_text(true), label_text(said), wrong
