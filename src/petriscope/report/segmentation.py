"""What the page of a run says where targets are masks: metrics by pixel, and images with truth, prediction and error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from petriscope.core.drawing import class_colors, paint
from petriscope.core.masks import IGNORE
from petriscope.report import wording
from petriscope.report.charts import Thumbnail, interval_mark, thumbnail

# key, name, what it means
METRICS = (
    (
        "miou",
        "Mean IoU",
        "of each class: pixels found, of those that are the class or were taken for it; mean over classes",
    ),
    ("miou_with_background", "Mean IoU with background", "the same with the background counted as a class"),
    ("pixel_accuracy", "Pixel accuracy", "share of labeled pixels given their true class"),
    (
        "boundary_f1",
        "Boundary F1",
        "of the classes' outlines, found within a pixel or so, and true where they are drawn",
    ),
)
RIGHT, WRONG = (214, 218, 221), (190, 62, 38)


@dataclass(frozen=True)
class Example:
    """One image: as it is, its truth, what was predicted, where that is wrong, and how sure the model was."""

    panels: tuple[tuple[str, Thumbnail], ...]
    id: str
    metric: str
    rank: str


@dataclass(frozen=True)
class SegmentView:
    """What the page says of a split whose targets are masks."""

    name: str
    metrics: dict[str, Any]
    classes: list[str]
    legend: list[tuple[str, str]]  # name, color
    per_class: list[dict[str, Any]]
    confusion: list[tuple[str, list[tuple[str, float, bool]], str]]  # true class: share, shade, hit; its pixels
    examples: list[Example]

    @property
    def n(self) -> int:
        return int(self.metrics["n"])


def segment_view(name: str, metrics: dict[str, Any], gallery: dict[str, np.ndarray]) -> SegmentView:
    """The view of one split, from its metrics and what the run folder keeps of its images."""
    per_class = metrics.get("per_class") or {}
    classes = list(per_class)
    return SegmentView(
        name=name,
        metrics=metrics,
        classes=classes,
        legend=legend(classes),
        per_class=_class_rows(per_class),
        confusion=_confusion(np.array(metrics.get("confusion") or np.zeros((0, 0)), dtype=np.int64), classes),
        examples=_examples(name, len(classes), gallery),
    )


def metric_rows(views: list[SegmentView]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Name, meaning, and for each split the metric and its interval; metrics that no split has are left out."""
    rows = []
    for key, name, meaning in METRICS:
        if all(view.metrics.get(key) is None for view in views):
            continue
        texts = [
            wording.percent_with_interval(view.metrics.get(key), view.metrics.get(f"{key}_ci95")) for view in views
        ]
        parts = [text.partition(" (") for text in texts]
        rows.append((name, meaning, [(metric, f"({rest}" if rest else "") for metric, _, rest in parts]))
    return rows


def headline(view: SegmentView) -> dict[str, str]:
    """The metric on top of the page, and the sentence beside it."""
    span = wording.span(view.metrics.get("miou_ci95"))
    tail = f" (95 % interval {span})" if span else ""
    there = [row for row in view.per_class if row["pixels_value"]]
    worst = min(there, key=lambda row: row["iou_value"], default=None)
    classes, images = wording.plural(len(there), "class", "classes"), wording.plural(view.n, f"{view.name} image")
    rest = f"mean IoU over {classes} on {images}{tail}."
    if worst is not None and len(there) > 1:
        rest += f" The class found worst is {worst['name']}: IoU {worst['iou']}."
    return {"big": wording.percent(view.metrics.get("miou")), "rest": rest}


def legend(classes: Sequence[str]) -> list[tuple[str, str]]:
    """Names and colors of the classes."""
    colors = class_colors(len(classes))
    return [(name, "#{:02x}{:02x}{:02x}".format(*color)) for name, color in zip(classes, colors.tolist(), strict=True)]


def _class_rows(per_class: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name, row in per_class.items():
        there = bool(row.get("pixels"))
        rows.append(
            {
                "name": name,
                "pixels": wording.count(row.get("pixels") or 0),
                "pixels_value": int(row.get("pixels") or 0),
                "iou_value": row.get("iou") or 0.0,
                "iou": wording.percent_with_interval(row.get("iou"), row.get("iou_ci95")) if there else wording.NONE,
                "mark": interval_mark(row.get("iou"), row.get("iou_ci95"), 0.0) if there else "",
                **{
                    key: wording.percent(row.get(key)) if there else wording.NONE
                    for key in ("precision", "recall", "f1")
                },
            }
        )
    return rows


def _confusion(confusion: np.ndarray, classes: list[str]) -> list[tuple[str, list[tuple[str, float, bool]], str]]:
    if confusion.shape != (len(classes),) * 2:
        return []
    out = []
    for i, name in enumerate(classes):
        total = int(confusion[i].sum())
        shares = confusion[i] / max(total, 1)
        cells = [
            (wording.percent(share, 1) if number else "0", round(share if i == j else share**0.5, 3), i == j)
            for j, (share, number) in enumerate(zip(shares.tolist(), confusion[i].tolist(), strict=True))
        ]
        out.append((name, cells, wording.count(total)))
    return out


def _examples(name: str, classes: int, gallery: dict[str, np.ndarray]) -> list[Example]:
    keys = ("images", "truth", "predicted", "confidence", "ids", "miou", "rank")
    arrays = {key: gallery.get(f"segments_{name}_{key}") for key in keys}
    images, truth, predicted = arrays["images"], arrays["truth"], arrays["predicted"]
    if images is None or truth is None or predicted is None:
        return []
    out = []
    for i in range(len(images)):
        panels = [
            ("image", thumbnail(images[i])),
            ("truth", thumbnail(paint(truth[i], classes))),
            ("predicted", thumbnail(paint(predicted[i], classes))),
            ("errors", thumbnail(_errors(truth[i], predicted[i]))),
        ]
        if arrays["confidence"] is not None:
            panels.append(("confidence", thumbnail(arrays["confidence"][i][..., None])))
        out.append(
            Example(tuple(panels), _word(arrays["ids"], i), _percent(arrays["miou"], i), _word(arrays["rank"], i))
        )
    return out


def _errors(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Where the prediction is right (light), wrong (red), or cannot be judged (black), uint8 [H, W, 3]."""
    out = np.zeros((*truth.shape, 3), dtype=np.uint8)
    out[truth == predicted] = RIGHT
    out[(truth != predicted) & (truth != IGNORE)] = WRONG
    return out


def _word(values: np.ndarray | None, i: int) -> str:
    return "" if values is None else str(values[i])


def _percent(values: np.ndarray | None, i: int) -> str:
    return "" if values is None else wording.percent(float(values[i]), 1)
