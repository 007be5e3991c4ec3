"""Explanations: maps over their images and how far they can be trusted, for the page of a run and a page of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from petriscope.core import drawing
from petriscope.core.files import write_text
from petriscope.core.results import CheckedMethod, ExplanationCheck, Explanations, Metric, Results
from petriscope.explain.checks import ORDERS
from petriscope.explain.shown import Shown
from petriscope.report import rendering, wording
from petriscope.report.charts import Thumbnail, class_legend, thumbnail

NAMES = {
    "hires-cam": "HiResCAM",
    "grad-cam": "Grad-CAM",
    "grad-cam++": "Grad-CAM++",
    "attention-gradient": "gradient-weighted attention",
    "attention-rollout": "attention rollout",
    "occlusion": "occlusion",
}
COMPARED = {"random": "over random (95 %)", "blob": "over a blob (95 %)", "region": "over the region (95 %)"}


@dataclass(frozen=True)
class Card:
    """An image on the page.

    Args:
        maps: each with the class that it is for.
        facts: terms and values.
        right: whether the prediction is correct, where that is known.
        mask: the predicted mask, where targets are masks.
        note: why there is no map.
    """

    shown: Thumbnail
    maps: list[tuple[Thumbnail, str]]
    id: str
    facts: list[tuple[str, str]]
    right: bool = True
    mask: Thumbnail | None = None
    note: str | None = None


@dataclass(frozen=True)
class CardGroup:
    """Cards under a heading; ``note``: what they show."""

    title: str
    cards: list[Card]
    note: str = ""


@dataclass(frozen=True)
class Maps:
    """The maps of a split.

    Args:
        about: what they show, in a sentence or two.
        legend: names and colors of the classes, where masks are drawn.
    """

    groups: list[CardGroup] = field(default_factory=list)
    about: str = ""
    legend: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class CheckRow:
    """One order of pixels in the table of checks; ``verdict``: of a method."""

    name: str
    cells: list[str]
    verdict: str


@dataclass(frozen=True)
class ExplanationView:
    """The explanations of one split.

    Args:
        method: its name.
        verdict: on the method; empty if it was not checked. ``n``: images that it was checked on.
        columns, rows: the table of checks.
        area: the share of the images in the regions that were checked, where targets are masks.
        notes: what is missing.
    """

    split: str
    method: str
    maps: Maps
    verdict: str
    trusted: bool
    n: int
    columns: list[str]
    rows: list[CheckRow]
    area: str
    notes: list[str]


@dataclass(frozen=True)
class Checked:
    """What the checks of a run say about a method."""

    split: str
    n: int
    verdict: str
    trusted: bool


def explanation_view(split: str, found: Explanations, maps: Maps) -> ExplanationView:
    """The explanations of a split and the checks of the method."""
    check = found.check
    own = None if check is None or found.method is None else check.methods.get(found.method)
    return ExplanationView(
        split=split,
        method=method_name(found.method) if found.method else "",
        maps=maps,
        verdict="" if own is None else own.verdict,
        trusted=own is not None and own.trusted,
        n=0 if check is None else check.n,
        columns=[] if check is None else _columns(check),
        rows=[] if check is None else _rows(check),
        area="" if check is None or check.area is None else wording.percent(check.area, 0),
        notes=_notes(found),
    )


def checked(method: str, results: Results) -> Checked | None:
    """What the checks of a run say about a method, on test if that was checked, else on val."""
    for split, evaluation in (("test", results.test), ("val", results.val)):
        if evaluation is None or evaluation.explanations is None or (check := evaluation.explanations.check) is None:
            continue
        if (own := check.methods.get(method)) is not None:
            return Checked(split, check.n, own.verdict, own.trusted)
    return None


def write_page(
    path: Path,
    shown: Sequence[Shown],
    method: str,
    recipe: str,
    total: int,
    errors: Sequence[str],
    check: Checked | None = None,
    classes: Sequence[str] = (),
) -> None:
    """Write one self-contained page of images and their maps.

    Args:
        shown: the images on the page, of ``total`` explained.
        recipe: the name of the model's recipe.
        errors: what was wrong with the images that could not be read.
        check: how far maps of this method can be trusted for this network; None if it was not checked.
        classes: names of the classes, where targets are masks.
    """
    masks = any(each.mask is not None for each in shown)
    context = {
        "cards": [make_card(each, classes) for each in shown],
        "method": method_name(method),
        "recipe": recipe,
        "total": total,
        "errors": errors,
        "check": check,
        "legend": class_legend(classes) if masks else [],
    }
    write_text(path, rendering.render("explanation.html", context))


def method_name(method: str) -> str:
    return NAMES.get(method, method)


def make_card(each: Shown, classes: Sequence[str]) -> Card:
    """The card of an image; ``classes``: names of the classes, where there is a mask."""
    confidence = ("confidence", wording.percent(each.confidence, 1))
    maps = []
    if each.mask is None:
        if each.heat is not None:
            maps.append((thumbnail(drawing.heat_overlay(each.image, each.heat)), each.explained))
        return Card(thumbnail(each.image), maps, each.id, [("predicted", each.predicted), confidence], note=each.note)
    facts = [("mostly", each.predicted)] if each.predicted else []
    if each.heat is not None:
        region = each.mask == classes.index(each.explained)
        maps.append((thumbnail(drawing.outlined(drawing.heat_overlay(each.image, each.heat), region)), each.explained))
        facts += [("share", wording.percent(each.share, 1)), confidence]
    mask = thumbnail(drawing.overlay(each.image, each.mask, len(classes)))
    return Card(thumbnail(each.image), maps, each.id, facts, mask=mask, note=each.note)


def _notes(found: Explanations) -> list[str]:
    if found.check is None:
        what = "There are no maps" if found.method is None else "Whether these maps can be trusted was not checked"
        return [f"{what}: {found.reason or 'the run folder does not say why'}."]
    if found.left_out:
        names = ", ".join(map(method_name, found.left_out))
        return [f"Not checked, because it would take too long for this network: {names}."]
    return []


def _columns(check: ExplanationCheck) -> list[str]:
    scores = ["score"] if check.area is not None else ["deletion", "insertion", "score"]
    compared = [COMPARED[order] for order in ORDERS if order in check.orders]
    inside = [] if check.area is None else ["heat inside"]
    return ["order of pixels", *scores, *compared, "shuffled weights (95 %)", *inside]


def _rows(check: ExplanationCheck) -> list[CheckRow]:
    """One row per method, and per order of pixels that methods are compared with."""
    rows = []
    compared = [f"over_{order}" for order in ORDERS if order in check.orders]
    for name, order in check.orders.items():
        own = check.methods.get(name)
        scores = [order.score] if check.area is not None else [order.deletion, order.insertion, order.score]
        cells = [wording.decimal(score, 3) for score in scores]
        cells += [_signed(own, key) for key in (*compared, "randomized")]
        if check.area is not None:
            cells.append(wording.percent(None if own is None else own.inside, 0))
        rows.append(CheckRow(ORDERS.get(name) or method_name(name), cells, "" if own is None else own.verdict))
    return rows


def _signed(own: CheckedMethod | None, key: str) -> str:
    metric = Metric(value=None) if own is None else own.metric(key)
    if metric.value is None:
        return wording.NONE
    low, high = metric.ci95 if metric.ci95 is not None else (None, None)
    interval = f" ({low:+.2f} to {high:+.2f})" if low is not None and high is not None else ""
    return f"{metric.value:+.2f}{interval}"
