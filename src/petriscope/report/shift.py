"""The section, or the page, on images that are compared with those of val."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from petriscope.core.files import write_text
from petriscope.core.results import Evaluation
from petriscope.core.shift_results import ShiftTest
from petriscope.report import rendering, wording
from petriscope.report.charts import Thumbnail, thumbnail
from petriscope.trust.verdict import class_mix, compared, differences, measured, remedy

SHOWN = 6  # images of each side


@dataclass(frozen=True)
class Shown:
    """An image, and the class that it is predicted as, or of val: that it is of."""

    image: Thumbnail
    name: str


def write_page(
    path: Path,
    test: ShiftTest,
    shown: np.ndarray,
    predicted: np.ndarray,
    gallery: Mapping[str, np.ndarray],
    classes: Sequence[str],
    model: str,
    source: str,
    adapts: bool = True,
) -> None:
    """Write one self-contained page of images from elsewhere beside those of val.

    Args:
        shown: images, uint8 [P, H, W, C], and the classes that they are ``predicted`` as, int64 [P].
        gallery: of the run, for the sample of val; may be empty.
        classes: their names.
        model, source: as commands name the model and the images.
        adapts: see `petriscope.trust.verdict.remedy`.
    """
    known = {**gallery, "shift_": shown, "shift__classes": predicted}
    view = _view("", test, known, classes, model, source, adapts)
    write_text(path, rendering.render("shift.html", {"shift": [view], "source": source, "model": model}))


@dataclass(frozen=True)
class ShiftView:
    """A comparison of a split with val.

    Args:
        withdrawn: whether guarantees are withdrawn.
        alarm: in a sentence, if they are; ``remedy``: the command that closes the gap.
        result: the result in a sentence; ``mix``: that of the test of the class mix, if there is something to say.
        rows: measure, median of the split, of val, and the difference in standard deviations.
        here, val: images of the split and of val, of the same classes where val has them.
    """

    split: str
    withdrawn: bool
    alarm: str
    remedy: str
    result: str
    mix: str
    rows: list[list[str]]
    here: list[Shown]
    val: list[Shown]


def shift_views(
    evaluated: Mapping[str, Evaluation],
    gallery: Mapping[str, np.ndarray],
    classes: Sequence[str],
    folder: str,
    adapts: bool = True,
) -> list[ShiftView]:
    """A view of each split that was compared with val.

    Args:
        classes: their names.
        folder: of the run, for a command.
        adapts: see `petriscope.trust.verdict.remedy`.
    """
    tests = {split: one.shift for split, one in evaluated.items() if one.shift is not None}
    return [_view(split, test, gallery, classes, folder, adapts=adapts) for split, test in tests.items()]


def _view(
    split: str,
    test: ShiftTest,
    gallery: Mapping[str, np.ndarray],
    classes: Sequence[str],
    folder: str,
    source: str = "NEW",
    adapts: bool = True,
) -> ShiftView:
    these = f"The {split} images" if split else "These images"
    here, val = _images(split, gallery, classes) if test.withdrawn else ([], [])
    return ShiftView(
        split=split,
        withdrawn=test.withdrawn,
        alarm=f"{these} are not like those of val, on which guarantees are fitted: {differences(test)}."
        if test.withdrawn
        else "",
        remedy=remedy(folder, source, adapts),
        result=_result(these, test),
        mix=f"The mix of predicted classes is not that of val: {class_mix(test)}. This alone withdraws no guarantee."
        if test.class_mix and not test.withdrawn
        else "",
        rows=[
            [each.measure, measured(each.here), measured(each.val), f"{each.deviations:+.1f}"] for each in test.differs
        ],
        here=here,
        val=val,
    )


def _result(these: str, test: ShiftTest) -> str:
    if test.not_tested is not None:
        return f"{these} were not tested for being like those of val: {test.not_tested}."
    found = "are not drawn like those of val" if test.withdrawn else "may be drawn like those of val"
    return f"{these} {found}. Compared are {compared(test)}."


def _images(split: str, gallery: Mapping[str, np.ndarray], classes: Sequence[str]) -> tuple[list[Shown], list[Shown]]:
    """Images of the split and as many of val, paired by predicted class where one is left."""
    shown, predicted = gallery.get(f"shift_{split}"), gallery.get(f"shift_{split}_classes")
    sample, of = gallery.get("sample_val"), gallery.get("sample_val_classes")
    here = [] if shown is None or predicted is None else _shown(shown[:SHOWN], predicted, classes)
    if sample is None or of is None or predicted is None:
        return here, []
    left = list(range(len(sample)))
    rows = []
    for label in predicted[:SHOWN]:
        if left:
            rows.append(left.pop(next((i for i, row in enumerate(left) if of[row] == label), 0)))
    return here, _shown(sample[rows], of[rows], classes)


def _shown(images: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> list[Shown]:
    pairs = zip(images, labels[: len(images)], strict=True)
    return [Shown(thumbnail(image), wording.glue(classes[int(label)])) for image, label in pairs]
