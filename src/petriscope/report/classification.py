"""What the page of a run says where targets are labels: metrics, confusion, classes, mistakes and calibration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from petriscope.core.recipe import Recipe
from petriscope.metrics.classification import calibration_bins
from petriscope.report import wording
from petriscope.report.charts import Thumbnail, interval_mark, reliability, thumbnail

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

MOST_CLASSES_IN_MATRIX = 60  # a larger matrix is no longer read
CONFUSIONS_NAMED = 5
MISTAKES_SHOWN = 48

# key, name, what it means, written as a share
METRICS = (
    ("accuracy", "Accuracy", "share of images given their true class", True),
    ("balanced_accuracy", "Balanced accuracy", "mean of the classes' recalls: each class counts the same", True),
    ("macro_precision", "Macro precision", "mean of the classes' precisions", True),
    ("macro_f1", "Macro F1", "mean of the classes' F1 scores", True),
    ("auc", "AUC", "area under the ROC curve, one class against the rest, mean; 0.5 is chance", False),
    ("nll", "NLL", "negative log-likelihood of the true class; lower is better", False),
    ("brier", "Brier score", "squared error of the probabilities, 0 to 2; lower is better", False),
    ("ece", "ECE", "gap between confidence and accuracy, over 15 bins; lower is better", True),
)


@dataclass(frozen=True)
class Cell:
    """A cell of the confusion matrix."""

    count: int
    rate: str
    shade: float  # opacity, 0 to 1
    hit: bool


@dataclass(frozen=True)
class Mistake:
    shown: Thumbnail
    id: str
    true: str = ""
    predicted: str = ""
    confidence: str = ""


@dataclass(frozen=True)
class LabelView:
    """What the page says of a split whose targets are labels."""

    name: str
    metrics: dict[str, Any]
    classes: list[str]
    matrix: list[tuple[str, list[Cell], int]]
    confusions: list[str]
    per_class: list[dict[str, Any]]
    mark_floor: str
    mistakes: list[Mistake]
    mistakes_total: int
    calibration: Markup | None
    calibration_words: str
    missing: list[str] = field(default_factory=list)

    @property
    def n(self) -> int:
        return int(self.metrics["n"])


def label_view(
    name: str, metrics: dict[str, Any], folder: str, predictions: pd.DataFrame, gallery: dict[str, np.ndarray]
) -> LabelView:
    """The view of one split, from its metrics and what the run folder keeps of it.

    Args:
        folder: the run's, quoted for a command.
    """
    per_class = metrics.get("per_class") or {}
    classes = list(per_class)
    confusion = np.array(metrics.get("confusion") or np.zeros((0, 0)), dtype=np.int64)
    rows = predictions[predictions["split"] == name] if len(predictions) else predictions
    floor = _floor(per_class)
    missing = []
    again = f"petriscope evaluate {folder}" + ("" if name == "test" else f" --split {name}")
    if not len(rows):
        missing.append(f"The predictions on {name} are not in the run folder. {again} adds them.")
    return LabelView(
        name=name,
        metrics=metrics,
        classes=classes,
        matrix=_matrix(confusion, classes),
        confusions=_confusions(confusion, classes),
        per_class=_class_rows(per_class, floor),
        mark_floor=wording.percent(floor, 0),
        mistakes=_mistakes(name, rows, gallery),
        mistakes_total=int(confusion.sum() - np.trace(confusion)),
        calibration=_calibration(rows, name),
        calibration_words=_calibration_words(rows, metrics),
        missing=missing,
    )


def headline(views: list[LabelView], history: list[dict[str, Any]], recipe: Recipe) -> dict[str, str]:
    if not views:
        val = history[-1].get("val") if history else None
        if val:
            images = "augmented val images" if recipe.evaluation.augment_val else "val images"
            return {
                "big": wording.percent(val.get("accuracy")),
                "rest": f"of the {images} were classified correctly after epoch {history[-1]['epoch']} "
                f"of {recipe.training.epochs}. This is not a final metric.",
            }
        return {"big": "", "rest": "There are no metrics on held-back images yet."}
    view = views[0]
    words = wording.span(view.metrics.get("accuracy_ci95"))
    share = wording.percent(view.metrics.get("accuracy"))
    tail = f" (95 % interval {words})" if words else ""
    rest = f"of {wording.plural(view.n, f'{view.name} image')} classified correctly{tail}."
    mistakes = wording.plural(view.mistakes_total, "mistake") if view.mistakes_total else "No mistakes"
    return {"big": share, "rest": f"{rest} {mistakes}.{_worst_class(view)}"}


def _worst_class(view: LabelView) -> str:
    there = [row for row in view.per_class if row["n"]]
    if len(there) < 2 or not view.mistakes_total:
        return ""
    worst = min(there, key=lambda row: row["recall_value"])
    return f" The class found least often is {worst['name']}: recall {worst['recall']}."


def metric_rows(views: list[LabelView]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Name, meaning, and for each split the metric and its interval."""
    rows = []
    for key, name, meaning, share in METRICS:
        cells = []
        for view in views:
            value, ci95 = view.metrics.get(key), view.metrics.get(f"{key}_ci95")
            write = wording.percent_with_interval if share else wording.decimal_with_interval
            text = write(value, ci95)
            metric, _, interval = text.partition(" (")
            cells.append((metric, f"({interval}" if interval else ""))
        if any(view.metrics.get(key) is not None for view in views):
            rows.append((name, meaning, cells))
    return rows


def _matrix(confusion: np.ndarray, classes: list[str]) -> list[tuple[str, list[Cell], int]]:
    if not len(classes) or len(classes) > MOST_CLASSES_IN_MATRIX or confusion.shape != (len(classes),) * 2:
        return []
    out = []
    for i, name in enumerate(classes):
        total = int(confusion[i].sum())
        cells = []
        for j, number in enumerate(confusion[i].tolist()):
            rate = number / total if total else 0.0
            # Errors are rare: by the root of their rate they show at all.
            shade = rate if i == j else rate**0.5
            cells.append(Cell(number, wording.percent(rate, 1), round(shade, 3), i == j))
        out.append((name, cells, total))
    return out


def _confusions(confusion: np.ndarray, classes: list[str]) -> list[str]:
    """The most frequent mistakes, in words."""
    off = confusion.copy()
    if not off.size or off.shape != (len(classes),) * 2:
        return []
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:CONFUSIONS_NAMED]
    out = []
    for i, j in zip(*np.unravel_index(order, off.shape), strict=True):
        if off[i, j]:
            share = wording.percent(off[i, j] / confusion[i].sum(), 1)
            out.append(f"{classes[i]} taken for {classes[j]}: {off[i, j]:,} of {confusion[i].sum():,} ({share})")
    return out


def _floor(per_class: dict[str, Any]) -> float:
    """Where the scale of the recalls begins: a round share below the lowest interval."""
    lows = [row["recall_ci95"][0] for row in per_class.values() if row.get("n")]
    return max(0.0, np.floor(10 * min(lows)) / 10) if lows else 0.0


def _class_rows(per_class: dict[str, Any], floor: float) -> list[dict[str, Any]]:
    rows = []
    for name, row in per_class.items():
        there = bool(row.get("n"))
        ci95 = row.get("recall_ci95") if there else None
        rows.append(
            {
                "name": name,
                "n": int(row.get("n") or 0),
                "precision": wording.percent(row.get("precision")) if there else wording.NONE,
                "recall_value": row.get("recall") or 0.0,
                "recall": wording.percent_with_interval(row.get("recall"), ci95) if there else wording.NONE,
                "mark": interval_mark(row.get("recall"), ci95, floor) if there else "",
                "f1": wording.percent(row.get("f1")) if there else wording.NONE,
                "auc": wording.decimal(row.get("auc")),
            }
        )
    return rows


def _mistakes(name: str, rows: pd.DataFrame, gallery: dict[str, np.ndarray]) -> list[Mistake]:
    images, ids = gallery.get(f"mistakes_{name}"), gallery.get(f"mistakes_{name}_ids")
    if images is None:
        return []
    names = [str(i) for i in ids] if ids is not None else [""] * len(images)
    columns = {"id", "target", "predicted", "confidence"}
    wrong = rows[rows["target"] != rows["predicted"]] if columns <= set(rows.columns) else None
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


def _calibration(rows: pd.DataFrame, name: str) -> Markup | None:
    if not {"target", "predicted", "confidence"} <= set(rows.columns) or not len(rows):
        return None
    correct = (rows["target"] == rows["predicted"]).to_numpy().astype(float)
    return reliability(calibration_bins(rows["confidence"].to_numpy(dtype=float), correct), name)


def _calibration_words(rows: pd.DataFrame, metrics: dict[str, Any]) -> str:
    if not {"target", "predicted", "confidence"} <= set(rows.columns) or not len(rows):
        return ""
    confidence, accuracy = float(rows["confidence"].mean()), float((rows["target"] == rows["predicted"]).mean())
    gap = 100 * (confidence - accuracy)
    verdict = "on the whole, as sure as right"
    if abs(gap) >= 0.05:
        verdict = f"{abs(gap):.1f} points too {'sure' if gap > 0 else 'unsure'} on the whole"
    ece = wording.percent_with_interval(metrics.get("ece"), metrics.get("ece_ci95"))
    return (
        f"Mean confidence is {wording.percent(confidence)} at an accuracy of {wording.percent(accuracy)}: {verdict}. "
        f"Expected calibration error: {ece}."
    )
