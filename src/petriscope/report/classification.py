"""The sections on the predictions of a classifier: confusion, metrics per class, mistakes and calibration.

`petriscope.report.page.TaskPage` says what each function is for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from petriscope.core.drawing import heat_overlay
from petriscope.core.results import ClassMetrics, Evaluation, Explanations
from petriscope.report import wording
from petriscope.report.charts import Thumbnail, interval_mark, reliability, thumbnail
from petriscope.report.explanations import Card, CardGroup, Maps
from petriscope.report.headline import Headline
from petriscope.report.metrics import MOST_CLASSES_IN_MATRIX, confusions, groups_of
from petriscope.tasks import Task

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

TEMPLATE = "_classification.html"
SECTIONS = (
    ("confusion", "Confusion"),
    ("classes", "Classes"),
    ("mistakes", "Mistakes"),
    ("calibration", "Calibration"),
)
ABOUT_METRICS = (
    "With 95 % intervals: Wilson's for accuracy, the bootstrap for the others. They are over images, or over groups where "
    "images belong to groups."
)
PAIRED_TEST = "McNemar's test"

MISTAKES_SHOWN, MISTAKES_OPEN = 48, 12  # those beyond the first are folded
COLUMNS = {"id", "target", "predicted", "confidence"}  # of predictions


@dataclass(frozen=True)
class Cell:
    """A cell of the confusion matrix; ``shade``: its opacity, 0 to 1."""

    count: int
    rate: str
    shade: float
    hit: bool


@dataclass(frozen=True)
class MatrixRow:
    """The images of one true class by predicted class."""

    name: str
    cells: list[Cell]
    total: int


@dataclass(frozen=True)
class ClassRow:
    """Metrics of one class; ``mark``: its recall drawn on a scale."""

    name: str
    n: int
    recall: str
    mark: Markup | str
    precision: str
    f1: str
    auc: str


@dataclass(frozen=True)
class Mistake:
    """An image that was classified incorrectly; without classes where predictions are missing."""

    shown: Thumbnail
    id: str
    true: str = ""
    predicted: str = ""
    confidence: str = ""


@dataclass(frozen=True)
class ClassificationView:
    """The predictions on one split.

    Args:
        images: how many there are, in words.
        classes: their names.
        matrix: empty where it is missing or ``too_large``.
        confusions: the most frequent ones, in words.
        scale_start: where the scale of the recalls starts.
        mistakes: those to show, the most confident first, the ``more`` folded; ``mistakes_total``: all.
        calibration: reliability diagram; None without predictions.
        missing: what is not in the run folder, with the command that adds it.
        evaluate: the command that evaluates the split.
    """

    split: str
    n: int
    images: str
    classes: list[str]
    matrix: list[MatrixRow]
    too_large: bool
    confusions: list[str]
    per_class: list[ClassRow]
    scale_start: str
    mistakes: list[Mistake]
    more: list[Mistake]
    mistakes_total: int
    calibration: Markup | None
    calibration_summary: str
    missing: str
    evaluate: str


def view(
    task: Task,
    split: str,
    evaluation: Evaluation,
    folder: str,
    rows: pd.DataFrame,
    gallery: Mapping[str, np.ndarray],
) -> ClassificationView:
    classes = list(evaluation.per_class)
    confusion = _confusion(evaluation)
    start = _scale_start(evaluation.per_class)
    mistakes = _mistakes(split, rows, gallery)
    evaluate = f"petriscope evaluate {folder}" + ("" if split == "test" else f" --split {split}")
    missing = "" if len(rows) else f"The predictions on {split} are not in the run folder. {evaluate} adds them."
    return ClassificationView(
        split=split,
        n=evaluation.n,
        images=wording.images(evaluation.n, evaluation.groups),
        classes=classes,
        matrix=_matrix(confusion, classes),
        too_large=len(classes) > MOST_CLASSES_IN_MATRIX,
        confusions=confusions(confusion, classes),
        per_class=[_class_row(name, one, start) for name, one in evaluation.per_class.items()],
        scale_start=wording.percent(start, 0),
        mistakes=mistakes[:MISTAKES_OPEN],
        more=mistakes[MISTAKES_OPEN:],
        mistakes_total=_mistakes_total(evaluation),
        calibration=_calibration(rows, split),
        calibration_summary=_calibration_summary(rows, evaluation),
        missing=missing,
        evaluate=evaluate,
    )


def headline(task: Task, split: str, evaluation: Evaluation) -> Headline:
    accuracy = evaluation.metric("accuracy")
    interval = wording.span(accuracy.ci95)
    tail = f" (95 % interval {interval})" if interval else ""
    total = _mistakes_total(evaluation)
    mistakes = wording.plural(total, "mistake") if total else "No mistakes"
    rest = f"of {wording.images(evaluation.n, evaluation.groups, split)} classified correctly{tail}. {mistakes}."
    there = {name: one for name, one in evaluation.per_class.items() if one.n}
    if total and len(there) > 1:
        worst = min(there, key=lambda name: there[name].value("recall") or 0.0)
        recall = there[worst].metric("recall")
        rest += f" Lowest recall: {worst}, {wording.percent_with_interval(recall.value, recall.ci95)}."
    return Headline(wording.percent(accuracy.value), rest)


def overlays(gallery: Mapping[str, np.ndarray], classes: int) -> Sequence[Sequence[np.ndarray]]:
    return ()


def maps(split: str, found: Explanations, rows: pd.DataFrame, gallery: Mapping[str, np.ndarray]) -> Maps:
    images, heats = gallery.get(f"explained_{split}"), gallery.get(f"explained_{split}_maps")
    if images is None or heats is None or not set(rows.columns) >= COLUMNS:
        return Maps()
    by_id = {str(row["id"]): row for row in rows.to_dict("records")}
    cards = []
    for pixels, (for_predicted, for_true), key in zip(images, heats, found.ids, strict=False):
        row = by_id.get(key)
        if row is None:
            continue
        true, predicted = str(row["target"]), str(row["predicted"])
        over = [(thumbnail(heat_overlay(pixels, for_predicted / 255)), predicted)]
        # Some methods do not depend on the class: one map is enough.
        if true != predicted and not np.array_equal(for_predicted, for_true):
            over.append((thumbnail(heat_overlay(pixels, for_true / 255)), true))
        facts = [("true", true), ("predicted", predicted), ("confidence", wording.percent(float(row["confidence"]), 1))]
        cards.append(Card(thumbnail(pixels), over, key, facts, right=true == predicted))
    groups = [
        CardGroup("Correct", [card for card in cards if card.right]),
        CardGroup(
            "Incorrect, the most confident first",
            [card for card in cards if not card.right],
            "The maps for the predicted class and for the true class.",
        ),
    ]
    return Maps([group for group in groups if group.cards])


def _confusion(evaluation: Evaluation) -> np.ndarray:
    """Images by true and predicted class, int64 [K, K]; empty if it is missing."""
    confusion = np.array(evaluation.confusion or np.zeros((0, 0)), dtype=np.int64)
    return confusion if confusion.shape == (len(evaluation.per_class),) * 2 else np.zeros((0, 0), dtype=np.int64)


def _mistakes_total(evaluation: Evaluation) -> int:
    confusion = _confusion(evaluation)
    return int(confusion.sum() - np.trace(confusion))


def _matrix(confusion: np.ndarray, classes: Sequence[str]) -> list[MatrixRow]:
    if len(classes) > MOST_CLASSES_IN_MATRIX:
        return []
    out = []
    for i, counts in enumerate(confusion):
        total = int(counts.sum())
        cells = []
        for j, count in enumerate(counts.tolist()):
            rate = count / total if total else 0.0
            # Errors are rare; the square root of their rate makes them visible.
            shade = rate if i == j else rate**0.5
            cells.append(Cell(count, wording.percent(rate, 1), round(shade, 3), i == j))
        out.append(MatrixRow(classes[i], cells, total))
    return out


def _scale_start(per_class: Mapping[str, ClassMetrics]) -> float:
    """A round share below the lowest interval of a recall."""
    spans = [one.metric("recall").ci95 for one in per_class.values() if one.n]
    lows = [span[0] for span in spans if span is not None and span[0] is not None]
    return max(0.0, float(np.floor(10 * min(lows)) / 10)) if lows else 0.0


def _class_row(name: str, one: ClassMetrics, scale_start: float) -> ClassRow:
    if not one.n:
        return ClassRow(name, 0, wording.NONE, "", wording.NONE, wording.NONE, wording.decimal(one.value("auc")))
    recall = one.metric("recall")
    return ClassRow(
        name=name,
        n=one.n,
        recall=wording.percent_with_interval(recall.value, recall.ci95),
        mark=interval_mark(recall.value, recall.ci95, scale_start),
        precision=wording.percent(one.value("precision")),
        f1=wording.percent(one.value("f1")),
        auc=wording.decimal(one.value("auc")),
    )


def _mistakes(split: str, rows: pd.DataFrame, gallery: Mapping[str, np.ndarray]) -> list[Mistake]:
    images, ids = gallery.get(f"mistakes_{split}"), gallery.get(f"mistakes_{split}_ids")
    if images is None:
        return []
    names = [str(key) for key in ids] if ids is not None else [""] * len(images)
    wrong = rows[rows["target"] != rows["predicted"]] if set(rows.columns) >= COLUMNS else None
    by_id = {} if wrong is None else {str(row["id"]): row for row in wrong.to_dict("records")}
    out = []
    for pixels, key in list(zip(images, names, strict=False))[:MISTAKES_SHOWN]:
        row = by_id.get(key)
        if row is None:
            out.append(Mistake(thumbnail(pixels), key))
            continue
        confidence = wording.percent(float(row["confidence"]), 1)
        out.append(Mistake(thumbnail(pixels), key, str(row["target"]), str(row["predicted"]), confidence))
    return out


def _calibration(rows: pd.DataFrame, split: str) -> Markup | None:
    if not len(rows) or not set(rows.columns) >= COLUMNS:
        return None
    correct = (rows["target"] == rows["predicted"]).to_numpy().astype(float)
    return reliability(rows["confidence"].to_numpy(dtype=float), correct, split, groups_of(rows))


def _calibration_summary(rows: pd.DataFrame, evaluation: Evaluation) -> str:
    if not len(rows) or not set(rows.columns) >= COLUMNS:
        return ""
    confidence, accuracy = float(rows["confidence"].mean()), float((rows["target"] == rows["predicted"]).mean())
    gap = 100 * (confidence - accuracy)
    verdict = "well calibrated on average"
    if abs(gap) >= 0.05:
        verdict = f"{abs(gap):.1f} points {'overconfident' if gap > 0 else 'underconfident'} on average"
    ece, band = wording.percent(evaluation.value("ece")), wording.span(evaluation.ece_if_calibrated)
    would = f"; for a perfectly calibrated model and so many images it would be {band} %" if band else ""
    return (
        f"Mean confidence is {wording.percent(confidence)} at an accuracy of {wording.percent(accuracy)}: the model is "
        f"{verdict}. Expected calibration error: {ece}{would}."
    )
