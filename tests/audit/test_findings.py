"""From what was found to findings and decisions: which copy stays, what is only to be looked at, what counts most."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from petriscope.audit import findings
from petriscope.audit.duplicates import Duplicates
from petriscope.audit.findings import KINDS, STRONGEST_FIRST, Finding, Listing, final_decisions, make_table
from petriscope.audit.label_errors import LabelErrors
from petriscope.audit.outliers import Outliers
from petriscope.audit.quality import Quality
from petriscope.core.errors import RequestError
from petriscope.data.file_check import FileFault


def some_images(*splits: str, labels: str = "") -> Listing:
    labels = labels or "a" * len(splits)
    ids = [f"{split}/{index}" for index, split in enumerate(splits)]
    return Listing(*(np.array(list(part), dtype=object) for part in (ids, splits, labels)))


def copies(
    images: Listing,
    groups: list[int],
    exact: bool = True,
    planted: set[int] = frozenset(),
    faulty: set[int] = frozenset(),
) -> list[Finding]:
    group = np.array(groups)
    alike = np.zeros(len(group), bool) if not exact else group >= 0
    found = Duplicates(
        group,
        alike,
        np.where(group >= 0, 1.0 if exact else 0.98, 0).astype(np.float32),
        np.array(["mirrored" if not exact and index else "" for index in range(len(group))], dtype=object),
    )
    digests = [
        str(groups[index] if exact and groups[index] >= 0 else -1 - index).encode() for index in range(len(group))
    ]
    mask = np.array([index in planted for index in range(len(group))])
    return list(findings.duplicate_findings(images, found, digests, mask, faulty))


def decided(found: list[Finding]) -> dict[int, str]:
    return {image: verdict for image, (verdict, _, _) in final_decisions(found).items()}


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(
    ("splits", "kept"),
    [
        (("all", "all", "all"), 0),
        (("train", "train", "train"), 0),
        (("train", "val", "val"), 1),
        (("train", "val", "test"), 2),
        (("train", "test", "test"), 1),
    ],
)
def test_the_copy_that_stays_is_the_first_of_test_else_of_val(splits: tuple[str, ...], kept: int, exact: bool) -> None:
    found = copies(some_images(*splits), [0, 0, 0], exact)
    assert decided(found) == {index: "keep" if index == kept else "drop" for index in range(3)}
    leaks = {each.image for each in found if each.finding == "leak"}
    assert leaks == (set(range(3)) if len(set(splits)) > 1 else set())


@pytest.mark.parametrize(("faulty", "kept"), [(set(), 0), ({0}, 1), ({0, 1}, 2), ({0, 1, 2}, 0)])
def test_of_copies_in_one_split_a_sound_one_stays(faulty: set[int], kept: int) -> None:
    found = copies(some_images(*["train"] * 3), [0, 0, 0], faulty=faulty)
    assert decided(found)[kept] == "keep"
    leaked = copies(some_images("train", "test", "test"), [0, 0, 0], faulty={1, 2})
    assert decided(leaked)[1] == "keep"


@pytest.mark.parametrize("exact", [True, False])
def test_copies_with_different_labels_are_only_to_be_looked_at(exact: bool) -> None:
    found = copies(some_images("train", "train", "test", labels="abb"), [0, 0, 0], exact)
    assert set(decided(found).values()) == {"review"}
    assert {each.image for each in found if each.finding == "conflicting_labels"} == {0, 1, 2}
    assert any("labeled a" in each.evidence and "labeled b" in each.evidence for each in found)


def test_how_a_near_duplicate_differs_is_said() -> None:
    found = copies(some_images("train", "train"), [0, 0], exact=False)
    assert [each.finding for each in found] == ["near_duplicate"] * 2
    assert found[1].evidence == "shows the same as train/0, mirrored"
    assert found[1].score == pytest.approx(0.98)


def test_groups_are_numbered_from_one_and_told_apart() -> None:
    found = copies(some_images(*["train"] * 5), [0, 1, -1, 1, 0])
    assert {each.image: each.group for each in found} == {
        0: "duplicates-1",
        4: "duplicates-1",
        1: "duplicates-2",
        3: "duplicates-2",
    }


def test_that_planted_images_are_alike_is_no_news_but_exact_copies_are() -> None:
    train = some_images(*["train"] * 3)
    assert copies(train, [0, 0, 0], exact=False, planted={0, 1, 2}) == []
    assert copies(train, [0, 0, 0], exact=False, planted={0, 1}) == []
    assert {each.image for each in copies(train, [0, 0, 0], exact=False, planted={2})} == {0, 1}
    assert {each.image for each in copies(train, [0, 0, 0], exact=True, planted={0, 1, 2})} == {0, 1, 2}


def test_the_strongest_decision_of_a_image_counts_and_brings_its_reasons() -> None:
    found = [
        Finding(0, "dark", "", 1, "review", "dark"),
        Finding(0, "blank", "", 1, "drop", "blank"),
        Finding(0, "exact_duplicate", "", 1, "keep", "of its copies, this one stays"),
        Finding(0, "label_error", "", 1, "relabel", "looks like b", suggested="b"),
        Finding(1, "exact_duplicate", "", 1, "keep", "of its copies, this one stays"),
    ]
    assert final_decisions(found) == {
        0: ("drop", "dark; blank; looks like b", "b"),
        1: ("keep", "of its copies, this one stays", ""),
    }


def test_strength_of_decisions() -> None:
    for stronger, weaker in pairwise(STRONGEST_FIRST):
        found = [Finding(0, "dark", "", 1, weaker, ""), Finding(0, "bright", "", 1, stronger, "")]
        assert decided(found) == {0: stronger}


def test_sure_label_errors_are_relabeled_and_others_looked_at() -> None:
    found = LabelErrors(np.array([True, True, False]), np.array([1, 1, 0]), np.array([0.97, 0.6, 0.1], np.float32))
    rows = list(findings.label_findings(some_images(*["train"] * 3), found, ("a", "b")))
    assert [(row.image, row.decision, row.suggested) for row in rows] == [(0, "relabel", "b"), (1, "review", "b")]
    assert "labeled a, looks like b" in rows[0].evidence


def test_a_faulty_image_is_not_relabeled() -> None:
    found = LabelErrors(np.array([True]), np.array([1]), np.array([0.97], np.float32))
    (row,) = findings.label_findings(some_images("train"), found, ("a", "b"), faulty={0})
    assert row.decision == "review"


def test_outliers_are_looked_at() -> None:
    found = Outliers(np.array([0.1, 9.0], np.float32), np.array([False, True]))
    (row,) = findings.outlier_findings(found)
    assert (row.image, row.decision, row.score) == (1, "review", 9.0)


@pytest.mark.parametrize("name", list(findings.QUALITY))
def test_quality_is_looked_at_and_blank_images_go(name: str) -> None:
    measured = {each: np.array([0.5, 0.5, 0.25], np.float32) for each, _ in findings.QUALITY.values()}
    flags = {each: np.array([False, False, each == name]) for each in findings.QUALITY}
    (row,) = findings.quality_findings(Quality(measured, flags))
    assert (row.image, row.finding) == (2, name)
    assert row.decision == ("drop" if name == "blank" else "review")
    assert row.score == pytest.approx(0.25) and "usual" in row.evidence


def test_of_a_blank_image_nothing_else_is_said() -> None:
    measured = {each: np.array([0.0], np.float32) for each, _ in findings.QUALITY.values()}
    found = list(findings.quality_findings(Quality(measured, {each: np.array([True]) for each in findings.QUALITY})))
    assert [row.finding for row in found] == ["blank"]


def test_files_without_a_image_go_and_others_are_looked_at() -> None:
    faults = [
        FileFault("train/0", "truncated", "x", 1, False),
        FileFault("train/1", "odd_size", "x", 3, True),
        FileFault("train/2", "unreadable", "x", 1, False),
    ]
    rows = list(findings.file_findings(some_images(*["train"] * 3), faults))
    assert [row.decision for row in rows] == ["drop", "review", "drop"]


def test_the_table_has_the_columns_promised_and_comes_back_from_both_files(tmp_path: Path) -> None:
    import pandas as pd

    table = make_table(some_images("train", "test", "all"), copies(some_images("train", "test", "all"), [0, 0, -1]))
    assert list(table.columns) == [
        *("id", "split", "label", "finding", "evidence", "score", "group", "decision", "reason", "suggested_label")
    ]
    assert table["finding"].tolist() == ["leak"] * 2 + ["exact_duplicate"] * 2
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet", index=False)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "t.csv", keep_default_na=False), table, check_dtype=False)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), table, check_dtype=False)


def test_an_empty_table_has_all_columns() -> None:
    assert len(make_table(some_images("train"), []).columns) == 10


@pytest.mark.parametrize(
    ("names", "kinds"),
    [
        ("leaks,conflicts", ["leak", "conflicting_labels"]),
        ("leak", ["leak"]),
        ("near-duplicate, duplicates", ["near_duplicate", "exact_duplicate"]),
        ("any", list(KINDS)),
    ],
)
def test_kinds_are_named_alone_or_by_family(names: str, kinds: list[str]) -> None:
    assert findings.kinds_of(names) == kinds


@pytest.mark.parametrize(("names", "near"), [("leeks", "leaks"), ("leaks,conflict", "conflicts"), ("", "known:")])
def test_an_unknown_kind_names_the_near_ones(names: str, near: str) -> None:
    with pytest.raises(RequestError, match=near):
        findings.kinds_of(names)


def test_every_kind_belongs_to_a_family_or_stands_alone() -> None:
    assert set().union(*FAMILIES_BUT_ANY.values()) | {"planted"} == set(KINDS)
    assert set(findings.QUALITY) <= set(findings.FAMILIES["quality"])


FAMILIES_BUT_ANY = {name: kinds for name, kinds in findings.FAMILIES.items() if name != "any"}
