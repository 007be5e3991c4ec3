"""The page of an audit: what was found, as images side by side, and what is suggested."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from petriscope.audit.findings import FAMILIES, KINDS
from petriscope.audit.runner import Audit
from petriscope.core.drawing import overlay
from petriscope.core.files import write_text
from petriscope.data.decisions import FILE
from petriscope.report import rendering, wording
from petriscope.report.charts import Thumbnail, thumbnail

if TYPE_CHECKING:
    import pandas as pd

GROUPS_SHOWN, GROUPS_OPEN = 16, 6  # the rest of those shown is folded
MEMBERS_SHOWN = 6
PLANTED_SHOWN = 12  # of the images that show a planted one
CARDS_SHOWN, CARDS_OPEN = 24, 12
FILES_LISTED = 50
NEIGHBORS = 4
NEIGHBOR_SIDE = 48  # pixels that a neighbor keeps
WORST_HIGHEST = ("bright", "odd_size")  # of all other kinds of quality, the lowest metric is the worst


@dataclass(frozen=True)
class Card:
    """An image with what is said below it.

    Args:
        shown: None where the image cannot be read.
        facts: (name, value) rows.
        said: the evidence.
        decision: what is suggested; empty where that goes without saying.
        neighbors: the images nearest to it, each with its label.
    """

    shown: Thumbnail | None
    id: str
    facts: list[tuple[str, str]]
    said: str
    decision: str
    neighbors: list[tuple[Thumbnail, str]]


@dataclass(frozen=True)
class Group:
    """Listing that belong together."""

    name: str
    size: int
    cards: list[Card]
    common: Thumbnail | None = None  # the image that was planted


@dataclass(frozen=True)
class Gallery:
    """A section of the page: groups or cards, some of them folded."""

    key: str
    title: str
    about: str
    total: str
    groups: list[Group]
    cards: list[Card]
    left: int  # that the page does not show


def write_audit_page(audit: Audit, path: Path, folder: Path | None = None) -> Path:
    """Write the page and give its path. ``folder``: where it will lie when all is written, if elsewhere."""
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
        "splits": [name for name in summary["per_split"] if name != "all"],
        "kinds": _kind_rows(summary),
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
    height, width, channels = audit.images.shape
    return f"{height} × {width} pixels, {'gray' if channels == 1 else 'color'}"


def _headline(summary: dict[str, Any], touched: int) -> dict[str, str]:
    n, counts = summary["n"], summary["decisions"]
    if not touched:
        return {"big": "Nothing found", "rest": f"among {wording.plural(n, 'image')}."}
    parts = [
        (counts["drop"], "to leave out"),
        (counts["relabel"], "to relabel"),
        (counts["review"], "to look at"),
        (counts["keep"], "to keep as the one copy of those that go"),
    ]
    said = ", ".join(f"{count:,} {what}" for count, what in parts if count)
    return {"big": f"{touched:,}", "rest": f"of {wording.plural(n, 'image')} have something about them: {said}."}


def _kind_rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    splits = [name for name in summary["per_split"] if name != "all"]
    return [
        {
            "name": _words(name),
            "about": about,
            "count": summary["findings"][name],
            "groups": summary["groups"].get(name),
            "splits": [summary["per_split"][split]["findings"][name] for split in splits],
        }
        for name, about in KINDS.items()
        if summary["findings"][name]
    ]


def _decision_rows(summary: dict[str, Any]) -> list[tuple[str, list[int], int]]:
    """Listing by split before and after, and what becomes of the difference."""
    splits = [name for name in summary["per_split"] if name != "all"]
    per_split, total = summary["per_split"], summary["decisions"]
    rows = [("images", [per_split[s]["n"] for s in splits], summary["n"])]
    for name, words in (("drop", "to leave out"), ("relabel", "to relabel"), ("review", "to look at")):
        rows.append((words, [per_split[s]["decisions"][name] for s in splits], total[name]))
    rows.append(
        ("left", [per_split[s]["n"] - per_split[s]["decisions"]["drop"] for s in splits], summary["n"] - total["drop"])
    )
    return rows


def _balance(audit: Audit) -> list[dict[str, Any]]:
    """Listing a class now, and if the suggestions are followed."""
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
    """Takes images and rows out of an audit for the galleries."""

    def __init__(self, audit: Audit) -> None:
        self.audit, self.table = audit, audit.table
        self.place = {name: index for index, name in enumerate(audit.images.ids.tolist())}

    def galleries(self) -> list[Gallery | None]:
        return [
            self._planted(),
            *self._copies(),
            self._cards("label_error", "Suspected labels", self._worst("label_error", highest=True), neighbors=True),
            self._cards("outlier", "Outliers", self._worst("outlier", highest=True)),
            *(
                self._cards(name, _words(name).capitalize(), self._worst(name, highest=name in WORST_HIGHEST))
                for name in (*FAMILIES["quality"], *FAMILIES["masks"])
            ),
            self._files(),
        ]

    def _planted(self) -> Gallery | None:
        rows = self.table[self.table["finding"] == "planted"]
        groups = []
        for name, members in _by_group(rows):
            template = self.audit.planted.templates[int(name.rpartition("-")[2]) - 1]
            spread = members.iloc[np.unique(np.linspace(0, len(members) - 1, PLANTED_SHOWN).astype(int))]
            cards = [self._card(row, "") for row in spread.itertuples()]
            groups.append(Group(name, len(members), cards, thumbnail(_as_bytes(template))))
        return self._gallery("planted", "Planted images", KINDS["planted"], rows, groups)

    def _copies(self) -> list[Gallery | None]:
        """Groups of copies, each shown once: among conflicts, else among leaks, else among duplicates."""
        copies = self.table[self.table["finding"].isin(FAMILIES["duplicates"])]
        named = {key: set(self.table[self.table["finding"] == key]["group"]) for key in ("conflicting_labels", "leak")}
        named["leak"] -= named["conflicting_labels"]
        rest = set(copies["group"]) - named["conflicting_labels"] - named["leak"]
        out = []
        for key, title, about, groups in (
            ("leak", "Leaks between splits", KINDS["leak"], named["leak"]),
            (
                "conflicting_labels",
                "Copies with different labels",
                KINDS["conflicting_labels"],
                named["conflicting_labels"],
            ),
            ("duplicates", "Duplicates", "Other images show the same; one stays.", rest),
        ):
            rows = copies[copies["group"].isin(groups)]
            # The least alike first: they are the ones to doubt.
            order = sorted(
                _by_group(rows), key=lambda item: (float(item[1]["score"].min()), int(item[0].split("-")[-1]))
            )
            shown = [
                Group(
                    name,
                    len(members),
                    [self._copy(row, members["id"].iloc[0]) for row in members[:MEMBERS_SHOWN].itertuples()],
                )
                for name, members in order[:GROUPS_SHOWN]
            ]
            out.append(self._gallery(key, title, about, rows, shown, len(order)))
        return out

    def _gallery(
        self, key: str, title: str, about: str, rows: pd.DataFrame, groups: list[Group], of: int | None = None
    ) -> Gallery | None:
        if not len(rows):
            return None
        count = len(groups) if of is None else of
        total = f"{wording.plural(len(rows), 'image')} in {wording.plural(count, 'group')}"
        return Gallery(key, title, about, total, groups, [], count - len(groups))

    def _worst(self, finding: str, highest: bool) -> pd.DataFrame:
        rows = self.table[self.table["finding"] == finding]
        return rows.sort_values("score", ascending=not highest, kind="stable")

    def _cards(self, key: str, title: str, rows: pd.DataFrame, neighbors: bool = False) -> Gallery | None:
        if not len(rows):
            return None
        shown = rows[:CARDS_SHOWN]
        near = (
            self._neighbors(shown) if neighbors and self.audit.features is not None else [[] for _ in range(len(shown))]
        )
        cards = [self._card(row, self._said(row), beside) for row, beside in zip(shown.itertuples(), near, strict=True)]
        about = KINDS[key] + (" The small images are its nearest neighbors, with their labels." if any(near) else "")
        return Gallery(key, title, about, wording.plural(len(rows), "image"), [], cards, len(rows) - len(shown))

    @staticmethod
    def _said(row: Any) -> str:
        return f"wrong with probability {row.score:.2f}" if row.finding == "label_error" else str(row.evidence)

    def _neighbors(self, rows: pd.DataFrame) -> list[list[tuple[Thumbnail, str]]]:
        from petriscope.audit.outliers import nearest

        assert self.audit.features is not None
        queries = np.array([self.place[name] for name in rows["id"]], dtype=np.int64)
        found = nearest(self.audit.features, queries, NEIGHBORS)
        labels = self.audit.listing.labels
        return [[(self._shown(index, NEIGHBOR_SIDE), str(labels[index])) for index in row] for row in found.tolist()]

    def _files(self) -> Gallery | None:
        rows = self.table[self.table["finding"].isin(FAMILIES["files"])]
        if not len(rows):
            return None
        cards = [self._card(row, row.evidence) for row in rows[:FILES_LISTED].itertuples()]
        about = "Files that cannot be read, or end before their image does."
        return Gallery(
            "files", "Damaged files", about, wording.plural(len(rows), "file"), [], cards, len(rows) - len(cards)
        )

    def _copy(self, row: Any, first: str) -> Card:
        """A card beside those of its copies, whose names need not be said again. ``first``: the id of their first."""
        if row.finding == "exact_duplicate":
            return self._card(row, "the same pixels")
        if row.id == first:
            return self._card(row, "what the others are held against")
        how = str(row.evidence).removeprefix(f"shows the same as {first}").removeprefix(", ")
        return self._card(row, f"{how + ', ' if how else ''}{row.score:.1%} alike")

    def _card(self, row: Any, said: Any, beside: Sequence[tuple[Thumbnail, str]] = ()) -> Card:
        facts = [("label", row.label)]
        if row.suggested_label:
            facts.append(("looks like", row.suggested_label))
        index = self.place.get(row.id)
        shown = None if index is None else self._shown(index)
        # That planted images and damaged files go need not be said of each.
        decision = "" if row.finding == "planted" else row.decision
        return Card(shown, row.id, facts, str(said), decision, list(beside))

    def _shown(self, index: int, side: int | None = None) -> Thumbnail:
        from petriscope.data.decode import resize

        images = self.audit.images
        pixels = images.take([index])[0]
        if images.segments:
            pixels = overlay(pixels, images.targets[index], len(images.classes))
        height, width = pixels.shape[:2]
        if side is not None and max(height, width) > side:
            factor = side / max(height, width)
            pixels = resize(pixels, (max(1, round(height * factor)), max(1, round(width * factor))), "box")
        return thumbnail(pixels)


def _by_group(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(str(name), members) for name, members in rows.groupby("group", sort=False)]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _as_bytes(template: np.ndarray) -> np.ndarray:
    """An image [h, w, C] of any range as uint8, its contrast stretched if it is not uint8 already."""
    if template.dtype == np.uint8:
        return template
    low, high = float(template.min()), float(template.max())
    return np.rint((template - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)
