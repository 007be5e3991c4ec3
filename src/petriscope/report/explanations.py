"""Where it looks: maps over their images and how far they can be trusted, for a run's report and for a page of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from petriscope.core import drawing as colors
from petriscope.core.files import write_text
from petriscope.explain.checks import ORDERS
from petriscope.explain.overlay import outlined, overlay
from petriscope.report import rendering, wording
from petriscope.report.charts import Thumbnail, thumbnail
from petriscope.report.segmentation import legend

NAMES = {
    "hires-cam": "HiResCAM",
    "grad-cam": "Grad-CAM",
    "grad-cam++": "Grad-CAM++",
    "attention-gradient": "gradient-weighted attention",
    "attention-rollout": "attention rollout",
    "occlusion": "occlusion",
}


@dataclass(frozen=True, eq=False)
class Shown:
    """An image with its map.

    Args:
        image: uint8 [H, W, C].
        heat: float [H, W] in [0, 1], for the class ``explained``; None: there is none.
        id: what it is called.
        predicted, confidence, explained: the class predicted, and the one asked about.
        mask: of a model of masks, the class index of each pixel, uint8 [H, W], and the share of the image that is
            predicted as the class asked about.
        share: that share.
        note: why there is no map.
    """

    image: np.ndarray
    heat: np.ndarray | None
    id: str
    predicted: str
    confidence: float | None
    explained: str
    mask: np.ndarray | None = None
    share: float = 0.0
    note: str | None = None


@dataclass(frozen=True)
class Card:
    """What the page shows of an image: itself, maps with the class that each is for, terms with their values, and of masks
    the one predicted."""

    shown: Thumbnail
    maps: list[tuple[Thumbnail, str]]
    id: str
    facts: list[tuple[str, str]]
    right: bool = True
    mask: Thumbnail | None = None
    note: str | None = None


@dataclass(frozen=True)
class Look:
    """What the page says of explanations on a split."""

    split: str
    method: str
    right: list[Card]
    wrong: list[Card]
    by_class: list[tuple[str, list[Card]]]  # of masks
    legend: list[tuple[str, str]]  # of masks: name, color
    verdict: str
    trusted: bool
    n: int
    rows: list[tuple[str, list[str], str]]
    area: str  # of masks, what the regions checked take of their images
    notes: list[str]


def looks(
    splits: Sequence[str], results: dict[str, Any], gallery: dict[str, np.ndarray], predictions: Any
) -> list[Look]:
    """The splits that have explanations, in the order given."""
    found = [(split, (results.get(split) or {}).get("explanations")) for split in splits]
    return [_look(split, facts, gallery, predictions) for split, facts in found if facts]


@dataclass(frozen=True)
class Checked:
    """What a run's checks say of a method."""

    split: str
    n: int
    verdict: str
    trusted: bool


def checked(method: str, results: dict[str, Any]) -> Checked | None:
    """What a run's results say of a method, by test where that was evaluated, else by val."""
    for split in ("test", "val"):
        check = ((results.get(split) or {}).get("explanations") or {}).get("check") or {}
        own = (check.get("methods") or {}).get(method)
        if own is not None:
            return Checked(split, int(check["n"]), str(own["verdict"]), bool(own["trusted"]))
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
    """One self-contained page of images and their maps.

    Args:
        shown: the images on the page, of ``total`` explained.
        errors: what was wrong with the others.
        check: how far maps of this method can be trusted on this network; None: it was not checked.
        classes: of a model of masks, their names.
    """
    masks = any(each.mask is not None for each in shown)
    context: dict[str, Any] = {"cards": [_card(each, classes) for each in shown], "method": _name(method)}
    context |= {"recipe": recipe, "total": total, "errors": errors, "check": check}
    context |= {"legend": legend(classes) if masks else []}
    write_text(path, rendering.render("explanation.html", context))


def _look(split: str, facts: dict[str, Any], gallery: dict[str, np.ndarray], predictions: Any) -> Look:
    masks = f"explained_{split}_masks" in gallery
    cards = [] if masks else _cards(split, facts, gallery, predictions)
    check, method = facts.get("check"), facts.get("method")
    own = ((check or {}).get("methods") or {}).get(method)
    notes = []
    if check is None:
        what = "Maps cannot be shown" if method is None else "How far they can be trusted was not checked"
        notes.append(f"{what}: {facts.get('reason') or 'the run folder does not say why'}.")
    elif facts.get("left_out"):
        names = ", ".join(_name(each) for each in facts["left_out"])
        notes.append(f"Not checked, since it would take too long on this network: {names}.")
    return Look(
        split=split,
        method=_name(method) if method else "",
        right=[card for card in cards if card.right],
        wrong=[card for card in cards if not card.right],
        by_class=_mask_cards(split, facts, gallery) if masks else [],
        legend=legend(facts["classes"]) if masks else [],
        verdict="" if own is None else str(own["verdict"]),
        trusted=bool(own and own["trusted"]),
        n=int((check or {}).get("n") or 0),
        rows=_rows(check) if check else [],
        area=wording.percent(check["area"], 0) if check and "area" in check else "",
        notes=notes,
    )


def _name(method: str) -> str:
    return NAMES.get(method, method)


def _rows(check: dict[str, Any]) -> list[tuple[str, list[str], str]]:
    """Of each method and each order it is held against: name, metrics, verdict."""
    rows = []
    for name, order in check["orders"].items():
        own = check["methods"].get(name)
        cells = [wording.decimal(order[key], 3) for key in (() if "area" in check else ("deletion", "insertion"))]
        cells.append(wording.decimal(order["score"], 3))
        compared = [f"over_{other}" for other in ORDERS if other in check["orders"]]
        for key in (*compared, "randomized"):
            cells.append(wording.NONE if own is None else _signed(own[key], own[f"{key}_ci95"]))
        if "area" in check:
            cells.append(wording.NONE if own is None else wording.percent(own["inside"], 0))
        rows.append((ORDERS.get(name) or _name(name), cells, "" if own is None else str(own["verdict"])))
    return rows


def _signed(value: float, ci95: Sequence[float]) -> str:
    return f"{value:+.2f} ({ci95[0]:+.2f} to {ci95[1]:+.2f})"


def _cards(split: str, facts: dict[str, Any], gallery: dict[str, np.ndarray], predictions: Any) -> list[Card]:
    images, maps = gallery.get(f"explained_{split}"), gallery.get(f"explained_{split}_maps")
    if images is None or maps is None or not {"id", "target", "predicted", "confidence"} <= set(predictions.columns):
        return []
    rows = predictions[predictions["split"] == split]
    by_id = {str(row["id"]): row for row in rows.to_dict("records")}
    cards = []
    for pixels, (for_predicted, for_true), key in zip(images, maps, facts.get("ids") or [], strict=False):
        row = by_id.get(key)
        if row is None:
            continue
        true, predicted = str(row["target"]), str(row["predicted"])
        over = [(thumbnail(overlay(pixels, for_predicted / 255)), predicted)]
        if true != predicted and not np.array_equal(for_predicted, for_true):  # some methods know no classes
            over.append((thumbnail(overlay(pixels, for_true / 255)), true))
        words = [("true", true), ("predicted", predicted), ("confidence", wording.percent(float(row["confidence"]), 1))]
        cards.append(Card(thumbnail(pixels), over, key, words, right=true == predicted))
    return cards


def _mask_cards(split: str, facts: dict[str, Any], gallery: dict[str, np.ndarray]) -> list[tuple[str, list[Card]]]:
    """Of each class that was shown, its images."""
    images, maps, masks = (gallery[f"explained_{split}{part}"] for part in ("", "_maps", "_masks"))
    classes, out = facts["classes"], dict[str, list[Card]]()
    kept = zip(images, maps, masks, facts["ids"], facts["of"], facts["confidence"], facts["share"], strict=True)
    for pixels, heat, mask, key, name, confidence, share in kept:
        shown = Shown(pixels, heat / 255, key, "", confidence, name, mask, share)
        out.setdefault(name, []).append(_card(shown, classes))
    return list(out.items())


def _card(each: Shown, classes: Sequence[str]) -> Card:
    """``classes``: names of what the mask's pixels are, where there is one."""
    sure = wording.percent(each.confidence, 1)
    if each.mask is None:
        assert each.heat is not None
        over = [(thumbnail(overlay(each.image, each.heat)), each.explained)]
        return Card(thumbnail(each.image), over, each.id, [("predicted", each.predicted), ("confidence", sure)])
    over = []
    words = [("mostly", each.predicted)] if each.predicted else []
    if each.heat is not None:
        region = each.mask == classes.index(each.explained)
        over.append((thumbnail(outlined(overlay(each.image, each.heat), region)), each.explained))
        words += [("share", wording.percent(each.share, 1)), ("confidence", sure)]
    mask = thumbnail(colors.overlay(each.image, each.mask, len(classes)))
    return Card(thumbnail(each.image), over, each.id, words, mask=mask, note=each.note)
