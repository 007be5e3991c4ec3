"""Where it looks: maps over their pictures and how far they can be trusted, for a run's report and for a page of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from petriscope.explain.overlay import overlay
from petriscope.files import write_text
from petriscope.report import rendering, wording
from petriscope.report.figures import Picture, picture

NAMES = {
    "hires-cam": "HiResCAM",
    "grad-cam": "Grad-CAM",
    "grad-cam++": "Grad-CAM++",
    "attention-gradient": "gradient-weighted attention",
    "attention-rollout": "attention rollout",
    "occlusion": "occlusion",
}
ORDERS = {"random": "a random order", "blob": "a centered blob"}


@dataclass(frozen=True, eq=False)
class Shown:
    """A picture with its map.

    Args:
        picture: uint8 [H, W, C].
        heat: float [H, W] in [0, 1], for the class ``explained``.
        id: what it is called.
        predicted, confidence, explained: the class predicted, and the one asked about.
    """

    picture: np.ndarray
    heat: np.ndarray
    id: str
    predicted: str
    confidence: float
    explained: str


@dataclass(frozen=True)
class Card:
    """What the page shows of a picture: itself, and maps with the class that each is for."""

    shown: Picture
    maps: list[tuple[Picture, str]]
    id: str
    true: str
    predicted: str
    confidence: str


@dataclass(frozen=True)
class Look:
    """What the page says of explanations on a split."""

    split: str
    method: str
    right: list[Card]
    wrong: list[Card]
    verdict: str
    trusted: bool
    n: int
    rows: list[tuple[str, list[str], str]]
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
) -> None:
    """One self-contained page of pictures and their maps.

    Args:
        shown: the pictures on the page, of ``total`` explained.
        errors: what was wrong with the others.
        check: how far maps of this method can be trusted on this network; None: it was not checked.
    """
    cards = []
    for each in shown:
        over = [(picture(overlay(each.picture, each.heat)), each.explained)]
        card = Card(picture(each.picture), over, each.id, "", each.predicted, wording.percent(each.confidence, 1))
        cards.append(card)
    context: dict[str, Any] = {"cards": cards, "method": _name(method), "recipe": recipe}
    context |= {"total": total, "errors": errors, "check": check}
    write_text(path, rendering.render("explanation.html", context))


def _look(split: str, facts: dict[str, Any], gallery: dict[str, np.ndarray], predictions: Any) -> Look:
    cards = _cards(split, facts, gallery, predictions)
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
        right=[card for card in cards if card.true == card.predicted],
        wrong=[card for card in cards if card.true != card.predicted],
        verdict="" if own is None else str(own["verdict"]),
        trusted=bool(own and own["trusted"]),
        n=int((check or {}).get("n") or 0),
        rows=_rows(check) if check else [],
        notes=notes,
    )


def _name(method: str) -> str:
    return NAMES.get(method, method)


def _rows(check: dict[str, Any]) -> list[tuple[str, list[str], str]]:
    """Of each method and each order it is held against: name, figures, verdict."""
    rows = []
    for name, order in check["orders"].items():
        own = check["methods"].get(name)
        cells = [wording.decimal(order[key], 3) for key in ("deletion", "insertion", "score")]
        for key in ("over_random", "over_blob", "randomized"):
            cells.append(wording.NONE if own is None else _signed(own[key], own[f"{key}_ci95"]))
        rows.append((ORDERS.get(name) or _name(name), cells, "" if own is None else str(own["verdict"])))
    return rows


def _signed(value: float, ci95: Sequence[float]) -> str:
    return f"{value:+.2f} ({ci95[0]:+.2f} to {ci95[1]:+.2f})"


def _cards(split: str, facts: dict[str, Any], gallery: dict[str, np.ndarray], predictions: Any) -> list[Card]:
    pictures, maps = gallery.get(f"explained_{split}"), gallery.get(f"explained_{split}_maps")
    if pictures is None or maps is None or not {"id", "target", "predicted", "confidence"} <= set(predictions.columns):
        return []
    rows = predictions[predictions["split"] == split]
    by_id = {str(row["id"]): row for row in rows.to_dict("records")}
    cards = []
    for pixels, (for_predicted, for_true), key in zip(pictures, maps, facts.get("ids") or [], strict=False):
        row = by_id.get(key)
        if row is None:
            continue
        true, predicted = str(row["target"]), str(row["predicted"])
        over = [(picture(overlay(pixels, for_predicted / 255)), predicted)]
        if true != predicted and not np.array_equal(for_predicted, for_true):  # some methods know no classes
            over.append((picture(overlay(pixels, for_true / 255)), true))
        cards.append(Card(picture(pixels), over, key, true, predicted, wording.percent(float(row["confidence"]), 1)))
    return cards
