"""The section on the stress test: how much of its metric the model keeps on corrupted images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from petriscope.augment.corruptions.together import STRONGEST
from petriscope.core.results import CorruptionResult, GuaranteeShares, GuaranteesUnderShift, Metric, Results, Robustness
from petriscope.report import wording
from petriscope.report.charts import Thumbnail, thumbnail
from petriscope.report.metrics import in_sentence
from petriscope.tasks import Task

ALARMING = 0.1  # mean drop from which the page warns
KINDS = {
    "storage": "Storage and sensor",
    "blur": "Blur",
    "light": "Light",
    "color": "Color",
    "cover": "Dirt and occlusion",
    "place": "Position",
}


@dataclass(frozen=True)
class HeatCell:
    """The metric at one severity; ``lost``: the share of the clean metric that is lost, 0 to 1."""

    metric: str
    tip: str
    lost: float


@dataclass(frozen=True)
class HeatRow:
    """One corruption: its cells, and an image under it at the severities shown."""

    name: str
    mark: str
    starred: bool
    cells: list[HeatCell]
    mean: HeatCell
    images: list[Thumbnail]


@dataclass(frozen=True)
class RobustnessView:
    """The stress test on one split.

    Args:
        metric: that it measures, within a sentence.
        alarm: a warning; empty where little is lost.
        plain: the image that is shown under all corruptions, undisturbed.
    """

    split: str
    metric: str
    headline: str
    alarm: str
    notes: list[str]
    severities: list[int]
    groups: list[tuple[str, list[HeatRow]]]
    plain: Thumbnail | None


def robustness_view(task: Task, results: Results, gallery: Mapping[str, np.ndarray]) -> RobustnessView | None:
    """The view of the split that counts most; None if there was no stress test."""
    split, test = next(
        ((name, test) for name in ("test", "val", "train") if (test := results.stress.get(name)) is not None),
        ("", None),
    )
    if test is None:
        return None
    names = [str(name) for name in gallery.get("disturbed_names", ())]
    strips = dict(zip(names, gallery.get("disturbed", ()), strict=False))
    groups: dict[str, list[HeatRow]] = {}
    for name, corruption in test.corruptions.items():
        heading = KINDS.get(corruption.kind, corruption.kind)
        groups.setdefault(heading, []).append(_row(name, corruption, test, strips.get(name)))
    first = next(iter(strips.values()), None)
    metric = in_sentence(task.info(test.metric_name))
    return RobustnessView(
        split=split,
        metric=metric,
        headline=headline(test),
        alarm=_alarm(test, metric),
        notes=_notes(split, test, metric),
        severities=test.severities,
        groups=list(groups.items()),
        plain=None if first is None else thumbnail(first[0]),
    )


def headline(test: Robustness) -> str:
    """As ``clean 98.5 %, corrupted mean 57.9 %, worst 19.8 % (brightness down)``."""
    worst = test.worst.value(test.metric_name)
    return (
        f"clean {wording.percent(test.value('clean'), 1)}, corrupted mean {wording.percent(test.value('mean'), 1)}, "
        f"worst {wording.percent(worst, 1)} ({_in_words(test.worst.name)})"
    )


def _alarm(test: Robustness, metric: str) -> str:
    drop = test.value("drop")
    if drop is None or drop < ALARMING:
        return ""
    return (
        f"On images that are blurred, discolored or partly covered, this model loses {100 * drop:.1f} points of "
        f"{metric} on average. Another camera, lighting or stain may have the same effect. What helps: the augmentation "
        "corruption-mix in the recipe, as in blood96/robust."
    )


def _notes(split: str, test: Robustness, metric: str) -> list[str]:
    images = wording.images(test.n, test.groups, split)
    drawn = "" if test.n == test.of else f", drawn from {test.of:,} in proportion to the classes"
    tta = "without test-time augmentation" if test.tta == "none" else f"with test-time augmentation {test.tta}"
    named = sum(corruption.medmnist_c for corruption in test.corruptions.values())
    drop = f"{_points(test.value('drop'))} ({wording.span(test.metric('drop').ci95)})"
    notes = [
        f"Cells show {metric} in % on {images}{drawn}, {tta}. The redder a cell, the larger the loss relative to the clean "
        f"{metric} of {_written(test.metric('clean'))}.",
        f"The corrupted mean, {_written(test.metric('mean'))}, is over five severities of the {named} corruptions marked •, "
        "which MedMNIST-C names for blood cells. Their levels are Petriscope's own. It is "
        f"{drop} below the clean metric: {wording.percent(test.value('relative_drop'), 1)} of the metric is lost.",
    ]
    if (together := test.metrics.get("together")) is not None:  # which older tests lack
        notes.append(
            f"Under two or three corruptions at once, of different kinds and up to severity {STRONGEST}, it is "
            f"{_written(together)}: {_written(test.metric('two_at_once'))} under two, "
            f"{_written(test.metric('three_at_once'))} under three."
        )
    if test.tile is not None:
        notes.append(
            f"Images have their own sizes; one tile of {test.tile[0]}x{test.tile[1]} of each was tested, at a random place, so "
            "the clean metric is not that of whole images."
        )
    if test.scenes is not None:
        notes.append(
            "Where a corruption moves the image, the mask moves with it. What enters from outside is not scored."
        )
    if test.groups is not None:
        notes.append(f"Intervals are over {wording.plural(test.groups, 'group')} of images.")
    seen, unseen = test.metric("seen"), test.metric("unseen")
    if seen.value is None:
        notes.append("The recipe trains against none of these corruptions.")
    elif unseen.value is not None:
        notes.append(
            f"Over corruptions that the recipe trains against, the mean is {_written(seen)}. Over those that training "
            f"never showed, it is {_written(unseen)}, which is the better estimate for an unexpected disturbance."
        )
    if test.guarantees is not None:
        notes.append(_guarantees(test.guarantees))
    return notes


def _guarantees(found: GuaranteesUnderShift) -> str:
    """What becomes of guarantees made on val when images are corrupted."""
    clean, disturbed = found.clean, found.disturbed
    return (
        f"With at most {100 * found.max_error:g} % errors requested, the model answers "
        f"{wording.percent(clean.value('answered'), 1)} of the clean images, {_written(clean.metric('wrong'))} of these "
        f"incorrectly, and {wording.percent(disturbed.value('answered'), 1)} under the corruptions marked •, "
        f"{_written(disturbed.metric('wrong'))} of these incorrectly. Prediction sets with a guaranteed coverage of "
        f"{100 * found.level:g} % contain the true class for {_written(clean.metric('held'))} of the clean images and for "
        f"{_written(disturbed.metric('held'))} of the corrupted ones.{_several(found.together)} The guarantees hold only for "
        "images like those of val."
    )


def _several(found: GuaranteeShares | None) -> str:
    if found is None:  # as in older tests
        return ""
    return (
        f" Under two or three corruptions at once, {wording.percent(found.value('answered'), 1)} are answered, "
        f"{_written(found.metric('wrong'))} of these incorrectly, and {_written(found.metric('held'))} of the sets contain the "
        "true class."
    )


def _written(metric: Metric) -> str:
    return wording.percent_with_interval(metric.value, metric.ci95)


def _points(value: float | None) -> str:
    return wording.NONE if value is None else f"{100 * value:.1f} points"


def _row(name: str, corruption: CorruptionResult, test: Robustness, strip: np.ndarray | None) -> HeatRow:
    clean = test.value("clean")
    cells = [
        _cell(metric, clean, f"{corruption.unit} {level:g}")
        for metric, level in zip(corruption.series[test.metric_name], corruption.levels, strict=True)
    ]
    return HeatRow(
        name=_in_words(name),
        mark="trained against" if corruption.seen else "held out" if corruption.held_out else "not in training",
        starred=corruption.medmnist_c,
        cells=cells,
        mean=_cell(corruption.metric("mean"), clean, "mean"),
        images=[] if strip is None else [thumbnail(pixels) for pixels in strip[1:]],
    )


def _cell(metric: Metric, clean: float | None, level: str) -> HeatCell:
    tip = f"{level}: {_written(metric)}"
    if metric.value is None:
        return HeatCell(wording.NONE, tip, 0.0)
    lost = min(max(1 - metric.value / clean, 0.0), 1.0) if clean else 0.0
    return HeatCell(f"{100 * metric.value:.1f}", tip, round(lost, 3))


def _in_words(name: str) -> str:
    return {"jpeg": "JPEG", "gaussian-noise": "Gaussian noise"}.get(name, name.replace("-", " "))
