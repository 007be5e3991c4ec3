"""The page of an audit: self-contained, escaped, and with every finding shown or counted."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from petriscope.audit.base import Check, Context, Finding, FindingInfo, Listing
from petriscope.audit.checks import all_findings
from petriscope.audit.findings import make_table
from petriscope.audit.planted import Planted
from petriscope.audit.runner import Audit
from petriscope.data.decisions import Decisions, ReadAs
from petriscope.data.imageset import ImageSet
from petriscope.report.audit import CARDS_SHOWN, GROUPS_SHOWN, render, write_audit_page

VOID = {"meta", "link", "img", "br"}
N, K = 120, 3
CLASSES = ("red <b>", "white", "platelet")


class Tags(HTMLParser):
    """Collects attributes and text, and fails on a tag that is not closed where it should be."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.names: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not {"style", "title"} & set(self.open):
            self.text += data


def make_audit(found: list[Finding], side: int = 6, channels: int = 3, features: bool = True, **changes: Any) -> Audit:
    rng = np.random.default_rng(0)
    splits = np.array((["train"] * 80 + ["val"] * 20 + ["test"] * 20), dtype=object)
    ids = np.array([f"{split}/{index}" for index, split in enumerate(splits)])
    targets = np.arange(N, dtype=np.int64) % K
    images = ImageSet(rng.integers(0, 256, (N, side, side, channels), dtype=np.uint8), targets, CLASSES, ids)
    names = np.array([*ids, "train/lost.png"], dtype=object)
    labels = np.array([*(CLASSES[target] for target in targets), CLASSES[0]], dtype=object)
    batch = Listing(names, np.array([*splits, "train"], dtype=object), labels)
    planted = Planted(
        np.full(N, -1), np.zeros(N, np.float32), rng.integers(0, 256, (1, side, side, channels), dtype=np.uint8)
    )
    decisions = Decisions(
        source="cells",
        fingerprint="f00d",
        read_as=ReadAs(size=(6, 6), filter="box", channels="rgb", bits=16),
        decisions=(),
    )
    parts: dict[str, Any] = {
        "source": "my <cells>",
        "fingerprint": "f00d",
        "table": make_table(batch, found),
        "decisions": decisions,
        "listing": batch,
        "images": images,
        "planted": planted,
        "features": rng.normal(size=(N, 4)).astype(np.float32) if features else None,
        "notes": ("A <note>.",),
    }
    return Audit(**{**parts, **changes})


def page_of(audit: Audit) -> str:
    return render(audit, Path("audits/my cells"))


def every_kind() -> list[Finding]:
    """Two images of each kind; the unreadable one has no image."""
    out = []
    for number, kind in enumerate(all_findings()):
        first = 2 * number
        group = {"planted": "planted-1"}.get(kind, f"duplicates-{number}" if number < 5 else "")
        for index in (first, first + 1):
            suggested = CLASSES[1] if kind == "label_error" else ""
            out.append(Finding(index, kind, f"{kind} <evidence> {index}", 0.5, "drop", "because", group, suggested))
            if kind in ("leak", "conflicting_labels"):
                out.append(Finding(index, "exact_duplicate", "same <pixels>", 1.0, "drop", "because", group))
    out.append(Finding(N, "unreadable", "unreadable <evidence> lost", 1.0, "drop", "no image"))
    return out


@pytest.mark.parametrize(("side", "channels"), [(6, 3), (6, 1), (200, 3)])
def test_every_kind_of_finding_is_on_the_page(side: int, channels: int) -> None:
    page = Tags(page_of(make_audit(every_kind(), side, channels)))
    for kind in set(all_findings()) - {
        "planted",
        "leak",
        "conflicting_labels",
        "exact_duplicate",
        "near_duplicate",
        "label_error",
    }:
        assert f"{kind} <evidence>" in page.text
    for heading in ("Planted images", "Leaks between splits", "Copies with different labels", "Suspected label errors"):
        assert heading in page.text
    assert "estimated from all images that show it" in page.text
    assert "wrong with probability 0.50" in page.text
    assert "same pixels" in page.text and "similarity 50.0%" in page.text
    assert "--audit 'audits/my cells'" in page.text
    assert "no image" in page.text and "train/lost.png" in page.text


def test_the_page_refers_to_nothing_outside_itself_and_escapes_names() -> None:
    text = page_of(make_audit(every_kind()))
    page = Tags(text)
    for tag, key, value in page.attributes:
        if key in ("src", "href"):
            assert value.startswith(("data:", "#")), (tag, value)
    assert not {"script", "b", "evidence", "cells", "pixels"} & set(page.names)
    assert "my <cells>" in page.text and "red <b>" in page.text and "A <note>." in page.text
    targets = [value[1:] for tag, key, value in page.attributes if key == "href" and value.startswith("#")]
    ids = [value for _, key, value in page.attributes if key == "id"]
    assert set(targets) <= set(ids) and len(ids) == len(set(ids))


def test_counts_and_balance() -> None:
    found = [
        Finding(0, "blank", "nothing", 0, "drop", "blank"),
        Finding(1, "label_error", "looks like red", 0.95, "relabel", "x", "", CLASSES[0]),
        Finding(2, "dark", "dark", 0.1, "review", "dark"),
    ]
    page = Tags(page_of(make_audit(found)))
    assert "3 of 121 images have findings: 1 to drop, 1 to relabel, 1 to review." in page.text
    assert "red <b>4141" in page.text.replace(" ", "").replace("red<b>", "red <b>")
    assert "white40" in page.text.replace(" ", "") and "\N{MINUS SIGN}1" in page.text


def test_nothing_found() -> None:
    page = Tags(page_of(make_audit([])))
    assert "No findings in 121 images." in page.text


def test_long_galleries_are_cut_and_say_so() -> None:
    many = [Finding(index, "outlier", "far", float(index), "review", "x") for index in range(CARDS_SHOWN + 7)]
    page = Tags(page_of(make_audit(many)))
    assert "7 more in findings.csv" in page.text
    assert page.names.count("img") == CARDS_SHOWN
    assert f"train/{CARDS_SHOWN + 6} " in page.text  # the farthest are shown

    pairs = [
        Finding(2 * group + place, "exact_duplicate", "same", 1.0, "drop", "x", f"duplicates-{group + 1}")
        for group in range(GROUPS_SHOWN + 4)
        for place in (0, 1)
    ]
    page = Tags(page_of(make_audit(pairs)))
    assert "4 more in findings.csv" in page.text
    assert page.names.count("img") == 2 * GROUPS_SHOWN


def test_a_suspected_label_is_shown_with_its_nearest_neighbors() -> None:
    found = [Finding(7, "label_error", "x", 0.95, "relabel", "x", "", CLASSES[1])]
    assert Tags(page_of(make_audit(found))).names.count("img") == 5
    assert Tags(page_of(make_audit(found, features=False))).names.count("img") == 1


def test_a_finding_that_a_check_adds_has_its_own_section(monkeypatch: Any) -> None:
    monkeypatch.setattr(Check, "registered", [*Check.registered])
    info = FindingInfo("too_red", "The image is too red.", title="Red images", higher_is_worse=False)

    class TooRed(Check):
        findings = (info,)

        def run(self, context: Context) -> list[Finding]:
            return []

    found = [info.of(index, f"redness {index}", index) for index in range(CARDS_SHOWN + 1)]
    text = page_of(make_audit(found))
    page = Tags(text)
    assert ("section", "id", "too_red") in page.attributes
    assert "Red images" in page.text and "The image is too red." in page.text
    assert "redness 0" in page.text and f"redness {CARDS_SHOWN}" not in page.text


def test_masks_are_laid_over_their_images() -> None:
    found = [Finding(0, "empty_mask", "nothing", 1, "review", "x")]
    plain = make_audit(found)
    dense = make_audit(found, images=replace(plain.images, targets=np.zeros((N, 6, 6), np.uint8), task=None))
    shown = [
        [value for tag, key, value in Tags(page_of(each)).attributes if (tag, key) == ("img", "src")]
        for each in (plain, dense)
    ]
    assert len(shown[0]) == len(shown[1]) == 1 and shown[0] != shown[1]


def test_the_page_is_written(tmp_path: Path) -> None:
    path = write_audit_page(make_audit([]), tmp_path / "report.html")
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
