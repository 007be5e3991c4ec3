"""Where it errs: the classes taken for each other, the kinds of image, and what was learned that looks alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from petriscope.report import wording
from petriscope.report.charts import Thumbnail, interval_mark, thumbnail

LEVEL = 0.05


@dataclass(frozen=True)
class Pair:
    """A class taken for another, with examples."""

    true: str
    predicted: str
    words: str
    examples: list[tuple[Thumbnail, str]]


@dataclass(frozen=True)
class Group:
    """A row of the table of an attribute."""

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
    name: str
    about: str
    floor: str
    groups: list[Group]


@dataclass(frozen=True)
class Mistake:
    """A mistake and the training images next to it."""

    shown: Thumbnail
    id: str
    true: str
    predicted: str
    confidence: str
    beside: list[tuple[Thumbnail, str, str]]
    words: str


@dataclass(frozen=True)
class Errors:
    """What the page says of a split's errors."""

    split: str
    n: int
    pairs: list[Pair]
    attributes: list[Attribute]
    summary: str
    mistakes: list[Mistake]
    among: str


def errors(splits: Sequence[str], results: dict[str, Any], gallery: dict[str, np.ndarray]) -> list[Errors]:
    """The splits whose errors were looked into, in the order given."""
    found = [(split, results.get(split) or {}) for split in splits]
    return [_errors(split, facts, gallery) for split, facts in found if facts.get("errors")]


def _errors(split: str, metrics: dict[str, Any], gallery: dict[str, np.ndarray]) -> Errors:
    facts = metrics["errors"]
    attributes = [_attribute(each) for each in facts.get("groups") or []]
    beside = facts.get("neighbors")
    return Errors(
        split=split,
        n=int(metrics["n"]),
        pairs=_pairs(facts.get("pairs") or [], gallery.get(f"confused_{split}")),
        attributes=attributes,
        summary=_summary(attributes),
        mistakes=_mistakes(beside, gallery.get(f"neighbors_{split}")),
        among="" if beside is None else _among(beside["among"], beside["of"]),
    )


def _pairs(pairs: list[dict[str, Any]], images: np.ndarray | None) -> list[Pair]:
    out, at = [], 0
    for pair in pairs:
        ids = pair["ids"]
        shown = [] if images is None else [thumbnail(pixels) for pixels in images[at : at + len(ids)]]
        at += len(ids)
        share = wording.percent(pair["count"] / pair["n"], 1)
        words = f"{pair['count']:,} of {pair['n']:,} ({share})"
        out.append(Pair(pair["true"], pair["predicted"], words, list(zip(shown, ids, strict=False))))
    return out


def _attribute(attribute: dict[str, Any]) -> Attribute:
    groups = attribute["groups"]
    floor = max(0.0, float(np.floor(10 * min(group["ci95"][0] for group in groups)) / 10))
    shares = all(group["high"] is None or group["high"] <= 1 for group in groups)
    rows = []
    for group in groups:
        reach = ""
        if group["low"] is not None:
            low, high = (f"{100 * v:.0f}" if shares else f"{v:.0f}" for v in (group["low"], group["high"]))
            reach = f"{low} to {high}{' %' if shares else ''}"
        note = _note(group)
        color = "" if group["color"] is None else "#" + "".join(f"{value:02x}" for value in group["color"])
        accuracy = wording.percent_with_interval(group["accuracy"], group["ci95"])
        mark = interval_mark(group["accuracy"], group["ci95"], floor)
        worse = bool(note) and group["accuracy"] < group["rest"]
        rows.append(Group(group["name"], reach, color, group["n"], accuracy, mark, note, worse))
    return Attribute(attribute["name"], attribute["about"], wording.percent(floor, 0), rows)


def _note(group: dict[str, Any]) -> str:
    """How a group differs from the rest, where it does so beyond chance."""
    if group["rest"] is None:
        return ""
    gap = 100 * (group["accuracy"] - group["rest"])
    size = f"{abs(gap):.1f} points {'above' if gap > 0 else 'below'} the rest"
    plain, within = group["p"] < LEVEL, group["p_within"] < LEVEL
    if within:
        return f"{size}, also class by class ({_p(group['p_within'])})"
    if plain:
        return f"{size} ({_p(group['p'])}), but not class by class: it holds other classes"
    return ""


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _summary(attributes: list[Attribute]) -> str:
    if not attributes:
        return ""
    total = sum(len(attribute.groups) for attribute in attributes)
    marked = sum(bool(group.note) for attribute in attributes for group in attribute.groups)
    if not marked:
        return f"None of the {total} groups differs from the rest beyond chance."
    differ = "differs" if marked == 1 else "differ"
    return f"{marked} of the {total} groups {differ} from the rest beyond chance."


def _among(looked: int, total: int) -> str:
    return f"the {total:,} training images" if looked == total else f"{looked:,} of the {total:,} training images"


def _mistakes(beside: dict[str, Any] | None, images: np.ndarray | None) -> list[Mistake]:
    if beside is None or images is None:
        return []
    out = []
    for row, shown in zip(beside["mistakes"], images, strict=False):
        near = [
            (thumbnail(pixels), label, f"{key}, similarity {value:.3f}")
            for pixels, label, key, value in zip(shown[1:], row["labels"], row["ids"], row["similarity"], strict=False)
        ]
        confidence = wording.percent(row["confidence"], 1)
        words = _labels(row)
        out.append(Mistake(thumbnail(shown[0]), row["id"], row["true"], row["predicted"], confidence, near, words))
    return out


def _labels(row: dict[str, Any]) -> str:
    counted = Counter(row["labels"])
    if set(counted) == {row["predicted"]}:
        return f"All of them are labeled {row['predicted']}, as predicted: is the label {row['true']} right?"
    said = ", ".join(f"{count} {label}" for label, count in counted.most_common())
    return f"Labels: {said}."
