"""The page of an audit: the findings, shown as images side by side, and the suggested decisions."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from petriscope.audit.base import FindingInfo
from petriscope.audit.checks import all_findings
from petriscope.audit.checks.copies import CONFLICT, EXACT, LEAK, NEAR
from petriscope.audit.checks.planted_images import PLANTED
from petriscope.audit.checks.wrong_labels import LABEL_ERROR
from petriscope.audit.findings import families
from petriscope.audit.outliers import nearest
from petriscope.audit.runner import Audit
from petriscope.core import drawing
from petriscope.core.channels import GRAY, RGB, in_words
from petriscope.core.drawing import overlay
from petriscope.core.files import write_text
from petriscope.data.decisions import FILE
from petriscope.data.decode import resize
from petriscope.report import rendering, wording
from petriscope.report.charts import Thumbnail, thumbnail

if TYPE_CHECKING:
    import pandas as pd

GROUPS_SHOWN, GROUPS_OPEN = 16, 6  # those shown beyond the open ones are folded
MEMBERS_SHOWN = 6
PLANTED_SHOWN = 12  # images of each group of planted ones
CARDS_SHOWN, CARDS_OPEN = 24, 12
FILES_LISTED = 50
NEIGHBORS = 4
NEIGHBOR_SIDE = 48  # pixels
FILES = "files"  # the family of findings about files, which share a section


@dataclass(frozen=True)
class Card:
    """An image and the text below it.

    Args:
        shown: None if the image cannot be read.
        facts: (name, value) rows.
        evidence: what was observed.
        decision: what is suggested; empty to leave it out.
        neighbors: the images nearest to it, each with its label.
    """

    shown: Thumbnail | None
    id: str
    facts: list[tuple[str, str]]
    evidence: str
    decision: str
    neighbors: list[tuple[Thumbnail, str]]


@dataclass(frozen=True)
class Group:
    """Images that belong together."""

    name: str
    size: int
    cards: list[Card]
    common: Thumbnail | None = None  # an estimate of the planted image


@dataclass(frozen=True)
class Gallery:
    """A section of the page: groups or cards, some of them folded."""

    key: str
    title: str
    about: str
    total: str
    groups: list[Group]
    cards: list[Card]
    left: int  # groups or cards that the page does not show


def write_audit_page(audit: Audit, path: Path, folder: Path | None = None) -> Path:
    """Write the page and return its path.

    Args:
        folder: the audit's final folder, if the page is first written elsewhere.
    """
    write_text(path, render(audit, path.parent if folder is None else folder))
    return path


def render(audit: Audit, folder: Path) -> str:
    """The page as one string of HTML that refers to nothing outside itself."""
    return rendering.render("audit.html", _context(audit, folder))


def _context(audit: Audit, folder: Path) -> dict[str, Any]:
    summary = audit.summary
    view = _View(audit)
    source = shlex.quote(audit.source)
    return {
        "source": audit.source,
        "headline": _headline(summary, len(audit.table.drop_duplicates("id"))),
        "notes": summary["notes"],
        "splits": _splits(summary),
        "findings": _finding_rows(summary),
        "decisions": _decision_rows(summary),
        "balance": _balance(audit),
        "galleries": [gallery for gallery in view.galleries() if gallery is not None],
        "groups_open": GROUPS_OPEN,
        "cards_open": CARDS_OPEN,
        "facts": [
            ("Source", audit.source),
            ("Images", f"{summary['n']:,}, read as {_shape(audit)}"),
            ("Fingerprint", audit.fingerprint),
        ],
        "train": f"petriscope train RECIPE --data {source} --audit {shlex.quote(str(folder))}",
        "file": FILE,
    }


def _shape(audit: Audit) -> str:
    height, width, _ = audit.images.shape
    names, bits = audit.images.channels, audit.images.bits
    kind = {GRAY: "gray", RGB: "color"}.get(names) or in_words(names)
    return f"{height} × {width} pixels, {kind}{'' if bits == 8 else f', {bits} bits'}. {drawing.shown_as(names, bits)}".rstrip(
        ". "
    )


def _headline(summary: dict[str, Any], touched: int) -> dict[str, str]:
    n, counts = summary["n"], summary["decisions"]
    if not touched:
        return {"big": "No findings", "rest": f"in {wording.plural(n, 'image')}."}
    parts = [
        (counts["drop"], "to drop"),
        (counts["relabel"], "to relabel"),
        (counts["review"], "to review"),
        (counts["keep"], "to keep while their copies are dropped"),
    ]
    listed = ", ".join(f"{count:,} {what}" for count, what in parts if count)
    return {"big": f"{touched:,}", "rest": f"of {wording.plural(n, 'image')} have findings: {listed}."}


def _finding_rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    splits = _splits(summary)
    return [
        {
            "name": info.words,
            "about": info.about,
            "count": summary["findings"][name],
            "groups": summary["groups"].get(name),
            "splits": [summary["per_split"][split]["findings"][name] for split in splits],
        }
        for name, info in all_findings().items()
        if summary["findings"][name]
    ]


def _decision_rows(summary: dict[str, Any]) -> list[tuple[str, list[int], int]]:
    """Images per split and in total: all, those with each suggested decision, and what remains."""
    splits = _splits(summary)
    per_split, total = summary["per_split"], summary["decisions"]
    rows = [("images", [per_split[s]["n"] for s in splits], summary["n"])]
    for name, words in (("drop", "to drop"), ("relabel", "to relabel"), ("review", "to review")):
        rows.append((words, [per_split[s]["decisions"][name] for s in splits], total[name]))
    remaining = [per_split[s]["n"] - per_split[s]["decisions"]["drop"] for s in splits]
    rows.append(("remaining", remaining, summary["n"] - total["drop"]))
    return rows


def _splits(summary: dict[str, Any]) -> list[str]:
    return [name for name in summary["per_split"] if name != "all"]


def _balance(audit: Audit) -> list[dict[str, Any]]:
    """Images per class now, and after the suggestions are applied."""
    decided = audit.table.drop_duplicates("id")
    dropped = decided[decided["decision"] == "drop"]["label"].value_counts()
    moving = audit.table[(audit.table["decision"] == "relabel") & (audit.table["suggested_label"] != "")]
    away, to = moving["label"].value_counts(), moving["suggested_label"].value_counts()
    labels, counts = np.unique(audit.listing.labels.astype(str), return_counts=True)
    before = dict(zip(labels.tolist(), counts.tolist(), strict=True))
    names = [*audit.images.classes, *(name for name in before if name not in audit.images.classes)]
    rows = []
    for name in names:
        now = before.get(name, 0)
        after = now - int(dropped.get(name, 0)) - int(away.get(name, 0)) + int(to.get(name, 0))
        rows.append({"name": name, "before": now, "after": after, "change": _signed(after - now)})
    most = max((max(row["before"], row["after"]) for row in rows), default=1)
    for row in rows:
        row["widths"] = [round(100 * row[key] / max(most, 1), 1) for key in ("before", "after")]
    return rows


def _signed(number: int) -> str:
    return f"{number:+,}".replace("-", "\N{MINUS SIGN}") if number else "0"


class _View:
    """Selects the images and rows of an audit that the galleries show."""

    def __init__(self, audit: Audit) -> None:
        self.audit, self.table = audit, audit.table
        self.place = {name: index for index, name in enumerate(audit.images.ids.tolist())}

    def galleries(self) -> list[Gallery | None]:
        in_groups = (PLANTED, LEAK, CONFLICT, EXACT, NEAR)
        others = (info for info in all_findings().values() if info not in in_groups and info.family != FILES)
        return [self._planted(), *self._copies(), *(self._worst(info) for info in others), self._files()]

    def _planted(self) -> Gallery | None:
        rows = self.table[self.table["finding"] == PLANTED.name]
        groups = []
        for name, members in _by_group(rows):
            template = self.audit.planted.templates[int(name.rpartition("-")[2]) - 1]
            spread = members.iloc[np.unique(np.linspace(0, len(members) - 1, PLANTED_SHOWN).astype(int))]
            cards = [self._card(row, "", decision="") for row in spread.itertuples()]
            groups.append(
                Group(name, len(members), cards, thumbnail(drawing.shown(template, self.audit.images.channels)))
            )
        return _gallery(PLANTED.name, PLANTED.title, PLANTED.about, rows, groups, len(groups))

    def _copies(self) -> list[Gallery | None]:
        """Groups of copies. Each is shown once: as a conflict, otherwise as a leak, otherwise as duplicates."""
        copies = self.table[self.table["finding"].isin([EXACT.name, NEAR.name])]
        conflicts, leaks = (set(self.table[self.table["finding"] == info.name]["group"]) for info in (CONFLICT, LEAK))
        leaks -= conflicts
        rest = set(copies["group"]) - conflicts - leaks
        out = []
        for key, title, about, groups in (
            (LEAK.name, LEAK.title, LEAK.about, leaks),
            (CONFLICT.name, CONFLICT.title, CONFLICT.about, conflicts),
            ("duplicates", "Duplicates", "Images that show the same content. One of each group is kept.", rest),
        ):
            rows = copies[copies["group"].isin(groups)]
            order = sorted(_by_group(rows), key=_least_similar_first)
            shown = [
                Group(
                    name,
                    len(members),
                    [self._copy(row, members["id"].iloc[0]) for row in members[:MEMBERS_SHOWN].itertuples()],
                )
                for name, members in order[:GROUPS_SHOWN]
            ]
            out.append(_gallery(key, title, about, rows, shown, len(order)))
        return out

    def _worst(self, info: FindingInfo) -> Gallery | None:
        """The worst images with one finding."""
        rows = self.table[self.table["finding"] == info.name]
        if not len(rows):
            return None
        shown = rows.sort_values("score", ascending=not info.higher_is_worse, kind="stable")[:CARDS_SHOWN]
        neighbors = self._neighbors(shown) if info == LABEL_ERROR else [[] for _ in range(len(shown))]
        cards = [
            self._card(row, _evidence(row), beside) for row, beside in zip(shown.itertuples(), neighbors, strict=True)
        ]
        about = info.about + (
            " Below each image are its nearest neighbors with their labels." if any(neighbors) else ""
        )
        title = info.title or info.words.capitalize()
        left = len(rows) - len(shown)
        return Gallery(info.name, title, about, wording.plural(len(rows), "image"), [], cards, left)

    def _neighbors(self, rows: pd.DataFrame) -> list[list[tuple[Thumbnail, str]]]:
        if self.audit.features is None:
            return [[] for _ in range(len(rows))]
        queries = np.array([self.place[name] for name in rows["id"]], dtype=np.int64)
        found = nearest(self.audit.features, queries, NEIGHBORS)
        labels = self.audit.listing.labels
        return [[(self._shown(index, NEIGHBOR_SIDE), str(labels[index])) for index in row] for row in found.tolist()]

    def _files(self) -> Gallery | None:
        rows = self.table[self.table["finding"].isin(families()[FILES])]
        if not len(rows):
            return None
        cards = [self._card(row, str(row.evidence)) for row in rows[:FILES_LISTED].itertuples()]
        about = "Files that cannot be read or that end before the image is complete."
        return Gallery(
            FILES, "Damaged files", about, wording.plural(len(rows), "file"), [], cards, len(rows) - len(cards)
        )

    def _copy(self, row: Any, first: str) -> Card:
        """A card next to those of its copies, which its evidence need not name again. ``first``: the first of them."""
        if row.finding == EXACT.name:
            return self._card(row, "same pixels")
        if row.id == first:
            return self._card(row, "the others are compared with this image")
        how = str(row.evidence).removeprefix(f"shows the same as {first}").removeprefix(", ")
        return self._card(row, f"{how + ', ' if how else ''}similarity {row.score:.1%}")

    def _card(
        self, row: Any, evidence: str, beside: Sequence[tuple[Thumbnail, str]] = (), decision: str | None = None
    ) -> Card:
        facts = [("label", row.label)]
        if row.suggested_label:
            facts.append(("looks like", row.suggested_label))
        index = self.place.get(row.id)
        shown = None if index is None else self._shown(index)
        return Card(shown, row.id, facts, evidence, row.decision if decision is None else decision, list(beside))

    def _shown(self, index: int, side: int | None = None) -> Thumbnail:
        images = self.audit.images
        pixels = drawing.shown(images.take([index])[0], images.channels)
        if images.task.dense:
            pixels = overlay(pixels, images.targets[index], len(images.classes))
        height, width = pixels.shape[:2]
        if side is not None and max(height, width) > side:
            factor = side / max(height, width)
            pixels = resize(pixels, (max(1, round(height * factor)), max(1, round(width * factor))), "box")
        return thumbnail(pixels)


def _gallery(key: str, title: str, about: str, rows: pd.DataFrame, groups: list[Group], count: int) -> Gallery | None:
    """A gallery of groups, of which there are ``count``; None if there are none."""
    if not len(rows):
        return None
    total = f"{wording.plural(len(rows), 'image')} in {wording.plural(count, 'group')}"
    return Gallery(key, title, about, total, groups, [], count - len(groups))


def _evidence(row: Any) -> str:
    """The evidence of a finding, without the labels that the card shows anyway."""
    return f"wrong with probability {row.score:.2f}" if row.finding == LABEL_ERROR.name else str(row.evidence)


def _by_group(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(str(name), members) for name, members in rows.groupby("group", sort=False)]


def _least_similar_first(group: tuple[str, pd.DataFrame]) -> tuple[float, int]:
    """The order in which groups are shown: the doubtful ones come first."""
    name, members = group
    return float(members["score"].min()), int(name.rpartition("-")[2])
