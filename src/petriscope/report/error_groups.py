"""The section on errors: which classes are confused, which groups of images are worse, and similar training images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from petriscope.core.results import ConfusedPair, ErrorAttribute, ErrorGroup, Evaluation, Neighbors, NeighborsOfMistake
from petriscope.report import wording
from petriscope.report.charts import Thumbnail, interval_mark, thumbnail

LEVEL = 0.05


@dataclass(frozen=True)
class Pair:
    """A class that is taken for another: how often, and images with their ids."""

    true: str
    predicted: str
    frequency: str
    examples: list[tuple[Thumbnail, str]]


@dataclass(frozen=True)
class Group:
    """A row in the table of an attribute."""

    name: str
    range: str
    color: str
    n: int
    accuracy: str
    mark: Markup
    note: str
    worse: bool


@dataclass(frozen=True)
class Attribute:
    """An attribute of images and its groups; ``floor``: where the scale of the accuracy begins."""

    name: str
    about: str
    floor: str
    groups: list[Group]


@dataclass(frozen=True)
class Mistake:
    """A mistake and the training images nearest to it: each with its label and what identifies it."""

    shown: Thumbnail
    id: str
    true: str
    predicted: str
    confidence: str
    neighbors: list[tuple[Thumbnail, str, str]]
    labels: str


@dataclass(frozen=True)
class ErrorsView:
    """The errors on one split; ``among``: which training images were searched."""

    split: str
    n: int
    pairs: list[Pair]
    attributes: list[Attribute]
    summary: str
    mistakes: list[Mistake]
    among: str


def errors(evaluated: Mapping[str, Evaluation], gallery: Mapping[str, np.ndarray]) -> list[ErrorsView]:
    """A view for each split whose errors were analyzed."""
    views = []
    for split, evaluation in evaluated.items():
        if (found := evaluation.errors) is None:
            continue
        attributes = [_attribute(attribute) for attribute in found.groups]
        views.append(
            ErrorsView(
                split=split,
                n=evaluation.n,
                pairs=_pairs(found.pairs, gallery.get(f"confused_{split}")),
                attributes=attributes,
                summary=_summary(attributes),
                mistakes=_mistakes(found.neighbors, gallery.get(f"neighbors_{split}")),
                among="" if found.neighbors is None else _among(found.neighbors),
            )
        )
    return views


def _pairs(pairs: Sequence[ConfusedPair], images: np.ndarray | None) -> list[Pair]:
    out, start = [], 0
    for pair in pairs:
        end = start + len(pair.ids)
        shown = [] if images is None else [thumbnail(pixels) for pixels in images[start:end]]
        start = end
        frequency = f"{pair.count:,} of {pair.n:,} ({wording.percent(pair.count / pair.n, 1)})"
        out.append(Pair(pair.true, pair.predicted, frequency, list(zip(shown, pair.ids, strict=False))))
    return out


def _attribute(attribute: ErrorAttribute) -> Attribute:
    lows = [group.ci95[0] for group in attribute.groups if group.ci95[0] is not None]
    floor = max(0.0, float(np.floor(10 * min(lows, default=0.0)) / 10))
    are_shares = all(group.high is None or group.high <= 1 for group in attribute.groups)
    groups = [_group(group, floor, are_shares) for group in attribute.groups]
    return Attribute(attribute.name, attribute.about, wording.percent(floor, 0), groups)


def _group(group: ErrorGroup, floor: float, are_shares: bool) -> Group:
    reach = ""
    if group.low is not None and group.high is not None:
        low, high = (f"{100 * v:.0f}" if are_shares else f"{v:.0f}" for v in (group.low, group.high))
        reach = f"{low} to {high}{' %' if are_shares else ''}"
    note = _note(group)
    return Group(
        name=group.name,
        range=reach,
        color="" if group.color is None else "#" + "".join(f"{round(value):02x}" for value in group.color),
        n=group.n,
        accuracy=wording.percent_with_interval(group.accuracy, group.ci95),
        mark=interval_mark(group.accuracy, group.ci95, floor),
        note=note,
        worse=bool(note) and group.rest is not None and group.accuracy < group.rest,
    )


def _note(group: ErrorGroup) -> str:
    """How a group differs from the rest, if it does so beyond chance."""
    if group.rest is None:
        return ""
    gap = 100 * (group.accuracy - group.rest)
    size = f"{abs(gap):.1f} points {'above' if gap > 0 else 'below'} the rest"
    if group.p_within < LEVEL:
        return f"{size}, also within classes ({_p(group.p_within)})"
    if group.p < LEVEL:
        return f"{size} ({_p(group.p)}), but not within classes: the group contains other classes than the rest"
    return ""


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _summary(attributes: Sequence[Attribute]) -> str:
    total = sum(len(attribute.groups) for attribute in attributes)
    differing = sum(bool(group.note) for attribute in attributes for group in attribute.groups)
    if not total:
        return ""
    if not differing:
        return f"None of the {total} groups differs from the rest beyond chance."
    return f"{differing} of the {total} groups {'differs' if differing == 1 else 'differ'} from the rest beyond chance."


def _among(neighbors: Neighbors) -> str:
    if neighbors.among == neighbors.of:
        return f"the {neighbors.of:,} training images"
    return f"{neighbors.among:,} of the {neighbors.of:,} training images"


def _mistakes(neighbors: Neighbors | None, images: np.ndarray | None) -> list[Mistake]:
    if neighbors is None or images is None:
        return []
    out = []
    for mistake, shown in zip(neighbors.mistakes, images, strict=False):
        near = [
            (thumbnail(pixels), label, f"{key}, similarity {similarity:.3f}")
            for pixels, label, key, similarity in zip(
                shown[1:], mistake.labels, mistake.ids, mistake.similarity, strict=False
            )
        ]
        confidence = wording.percent(mistake.confidence, 1)
        first = thumbnail(shown[0])
        out.append(Mistake(first, mistake.id, mistake.true, mistake.predicted, confidence, near, _labels(mistake)))
    return out


def _labels(mistake: NeighborsOfMistake) -> str:
    counted = Counter(mistake.labels)
    if set(counted) == {mistake.predicted}:
        return f"All neighbors are labeled {mistake.predicted}, as predicted. Is the label {mistake.true} correct?"
    return f"Labels of the neighbors: {', '.join(f'{count} × {label}' for label, count in counted.most_common())}."
