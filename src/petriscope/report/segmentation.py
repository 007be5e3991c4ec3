"""The sections on the predictions of a segmenter: metrics per class, confusion of pixels, and example images.

`petriscope.report.page.TaskPage` says what each function is for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from petriscope.core.drawing import overlay, paint
from petriscope.core.masks import IGNORE
from petriscope.core.results import ClassMetrics, Evaluation, Explanations
from petriscope.explain.shown import Shown
from petriscope.report import wording
from petriscope.report.charts import Thumbnail, class_legend, interval_mark, thumbnail
from petriscope.report.explanations import Card, CardGroup, Maps, make_card, method_name
from petriscope.report.headline import Headline
from petriscope.report.metrics import MOST_CLASSES_IN_MATRIX, confusions
from petriscope.tasks import Task

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

TEMPLATE = "_segmentation.html"
SECTIONS = (("classes", "Classes"), ("confusion", "Confusion"), ("examples", "Images"))
ABOUT_METRICS = (
    "With 95 % intervals from the bootstrap over images, or over groups where images belong to groups, because pixels of an "
    "image and images of a group are not independent. Unlabeled pixels are not counted."
)
PAIRED_TEST = "paired test"

RIGHT, WRONG = (214, 218, 221), (190, 62, 38)


@dataclass(frozen=True)
class Cell:
    """A cell of the confusion matrix: a share of the true class, and the opacity to draw it with, 0 to 1."""

    share: str
    shade: float
    hit: bool


@dataclass(frozen=True)
class MatrixRow:
    """The pixels of one true class by predicted class."""

    name: str
    cells: list[Cell]
    total: str


@dataclass(frozen=True)
class ClassRow:
    """Metrics of one class; ``mark``: its IoU drawn on a scale."""

    name: str
    pixels: str
    iou: str
    mark: Markup | str
    precision: str
    recall: str
    f1: str


@dataclass(frozen=True)
class Example:
    """An image in several panels, each with a title, and its rank by the metric: best, median or worst."""

    panels: list[tuple[str, Thumbnail]]
    id: str
    metric: str
    rank: str


@dataclass(frozen=True)
class SegmentationView:
    """The predictions on one split.

    Args:
        images: how many there are, in words; ``resolution``: in which size their pixels are counted; empty in older runs.
        matrix: empty where it is missing or too large; ``confusions``: the most frequent ones, in words.
        classes: their names; ``legend``: names and colors.
    """

    split: str
    images: str
    resolution: str
    classes: list[str]
    legend: list[tuple[str, str]]
    per_class: list[ClassRow]
    matrix: list[MatrixRow]
    confusions: list[str]
    examples: list[Example]


def view(
    task: Task,
    split: str,
    evaluation: Evaluation,
    folder: str,
    rows: pd.DataFrame,
    gallery: Mapping[str, np.ndarray],
) -> SegmentationView:
    classes = list(evaluation.per_class)
    confusion = np.array(evaluation.confusion or np.zeros((0, 0)), dtype=np.int64)
    return SegmentationView(
        split=split,
        images=wording.images(evaluation.n, evaluation.groups),
        resolution=evaluation.resolution or "",
        classes=classes,
        legend=class_legend(classes),
        per_class=[_class_row(name, one) for name, one in evaluation.per_class.items()],
        matrix=_matrix(confusion, classes),
        confusions=confusions(confusion, classes),
        examples=_examples(split, len(classes), gallery),
    )


def headline(task: Task, split: str, evaluation: Evaluation) -> Headline:
    miou = evaluation.metric("miou")
    interval = wording.span(miou.ci95)
    tail = f" (95 % interval {interval})" if interval else ""
    there = {name: one for name, one in evaluation.per_class.items() if one.pixels}
    classes = wording.plural(len(there), "class", "classes")
    rest = f"mean IoU over {classes} on {wording.images(evaluation.n, evaluation.groups, split)}{tail}."
    if len(there) > 1:
        worst = min(there, key=lambda name: there[name].value("iou") or 0.0)
        iou = there[worst].metric("iou")
        rest += f" Lowest IoU: {worst}, {wording.percent_with_interval(iou.value, iou.ci95)}."
    return Headline(wording.percent(miou.value), rest)


def overlays(gallery: Mapping[str, np.ndarray], classes: int) -> Sequence[Sequence[np.ndarray]]:
    images, masks = gallery.get("augmented"), gallery.get("augmented_masks")
    if images is None or masks is None:
        return ()
    return [[overlay(*pair, classes) for pair in zip(*strip, strict=True)] for strip in zip(images, masks, strict=True)]


def maps(split: str, found: Explanations, rows: pd.DataFrame, gallery: Mapping[str, np.ndarray]) -> Maps:
    images, heats, masks = (gallery.get(f"explained_{split}{part}") for part in ("", "_maps", "_masks"))
    if images is None or heats is None or masks is None:
        return Maps()
    by_class: dict[str, list[Card]] = {}
    facts = zip(images, heats, masks, found.ids, found.of, found.confidence, found.share, strict=True)
    for pixels, heat, mask, key, name, confidence, share in facts:
        shown = Shown(pixels, heat / 255, key, "", confidence, name, mask, share)
        by_class.setdefault(name, []).append(make_card(shown, found.classes))
    about = (
        "For each class, the images with the largest share of it: the image, the predicted mask, and a map by "
        f"{method_name(found.method or '')} of what makes the pixels within the outline belong to the class. Share: the "
        "share of the image predicted as the class. Confidence: the mean probability of the class over these pixels."
    )
    groups = [CardGroup(name, cards) for name, cards in by_class.items()]
    return Maps(groups, about, class_legend(found.classes))


def _class_row(name: str, one: ClassMetrics) -> ClassRow:
    if not one.pixels:
        return ClassRow(name, "0", wording.NONE, "", wording.NONE, wording.NONE, wording.NONE)
    iou = one.metric("iou")
    return ClassRow(
        name=name,
        pixels=wording.count(one.pixels),
        iou=wording.percent_with_interval(iou.value, iou.ci95),
        mark=interval_mark(iou.value, iou.ci95, 0.0),
        precision=wording.percent(one.value("precision")),
        recall=wording.percent(one.value("recall")),
        f1=wording.percent(one.value("f1")),
    )


def _matrix(confusion: np.ndarray, classes: Sequence[str]) -> list[MatrixRow]:
    if confusion.shape != (len(classes),) * 2 or len(classes) > MOST_CLASSES_IN_MATRIX:
        return []
    out = []
    for i, counts in enumerate(confusion):
        total = int(counts.sum())
        shares = (counts / max(total, 1)).tolist()
        cells = [
            # Errors are rare; the square root of their share makes them visible.
            Cell(wording.percent(share, 1) if share else "0", round(share if i == j else share**0.5, 3), i == j)
            for j, share in enumerate(shares)
        ]
        out.append(MatrixRow(classes[i], cells, wording.count(total)))
    return out


def _examples(split: str, classes: int, gallery: Mapping[str, np.ndarray]) -> list[Example]:
    keys = ("images", "truth", "predicted", "confidence", "ids", "miou", "rank")
    arrays = {key: gallery.get(f"segments_{split}_{key}") for key in keys}
    images, truth, predicted, confidence = (arrays[key] for key in keys[:4])
    if images is None or truth is None or predicted is None:
        return []
    out = []
    for i, image in enumerate(images):
        panels = [
            ("image", thumbnail(image)),
            ("truth", thumbnail(paint(truth[i], classes))),
            ("predicted", thumbnail(paint(predicted[i], classes))),
            ("errors", thumbnail(_errors(truth[i], predicted[i]))),
        ]
        if confidence is not None:
            panels.append(("confidence", thumbnail(confidence[i][..., None])))
        ids, miou, rank = ("" if values is None else values[i] for values in (arrays[key] for key in keys[4:]))
        out.append(Example(panels, str(ids), wording.percent(float(miou), 1) if miou != "" else "", str(rank)))
    return out


def _errors(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Correct pixels in light gray, wrong ones in red, unlabeled ones in black, uint8 [H, W, 3]."""
    out = np.zeros((*truth.shape, 3), dtype=np.uint8)
    out[(truth == predicted) & (truth != IGNORE)] = RIGHT
    out[(truth != predicted) & (truth != IGNORE)] = WRONG
    return out
