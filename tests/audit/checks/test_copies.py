"""Copies: which one is kept, what leaks and conflicts, and how it is reported."""

from __future__ import annotations

import numpy as np
import pytest

from petriscope.audit.base import Finding, Listing
from petriscope.audit.checks.copies import findings_of_copies
from petriscope.audit.duplicates import Duplicates
from petriscope.audit.findings import final_decisions


def listing_of(*splits: str, labels: str = "") -> Listing:
    ids = [f"{split}/{index}" for index, split in enumerate(splits)]
    columns = (ids, splits, labels or "a" * len(splits))
    return Listing(*(np.array(list(column), dtype=object) for column in columns))


def copies(
    listing: Listing,
    groups: list[int],
    exact: bool = True,
    planted: set[int] = frozenset(),
    faulty: set[int] = frozenset(),
) -> list[Finding]:
    group = np.array(groups)
    found = Duplicates(
        group,
        (group >= 0) & exact,
        np.where(group >= 0, 1.0 if exact else 0.98, 0).astype(np.float32),
        np.array(["mirrored" if not exact and index else "" for index in range(len(group))], dtype=object),
    )
    digests = [
        str(groups[index] if exact and groups[index] >= 0 else -1 - index).encode() for index in range(len(group))
    ]
    mask = np.array([index in planted for index in range(len(group))])
    return list(findings_of_copies(listing, found, digests, mask, faulty))


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
def test_the_first_copy_in_test_is_kept_or_else_in_val(splits: tuple[str, ...], kept: int, exact: bool) -> None:
    found = copies(listing_of(*splits), [0, 0, 0], exact)
    assert decided(found) == {index: "keep" if index == kept else "drop" for index in range(3)}
    leaks = {each.image for each in found if each.finding == "leak"}
    assert leaks == (set(range(3)) if len(set(splits)) > 1 else set())


@pytest.mark.parametrize(("faulty", "kept"), [(set(), 0), ({0}, 1), ({0, 1}, 2), ({0, 1, 2}, 0)])
def test_of_copies_in_one_split_one_without_faults_is_kept(faulty: set[int], kept: int) -> None:
    found = copies(listing_of(*["train"] * 3), [0, 0, 0], faulty=faulty)
    assert decided(found)[kept] == "keep"
    leaked = copies(listing_of("train", "test", "test"), [0, 0, 0], faulty={1, 2})
    assert decided(leaked)[1] == "keep"


@pytest.mark.parametrize("exact", [True, False])
def test_copies_with_different_labels_are_to_be_reviewed(exact: bool) -> None:
    found = copies(listing_of("train", "train", "test", labels="abb"), [0, 0, 0], exact)
    assert set(decided(found).values()) == {"review"}
    conflicts = {each.image: each.evidence for each in found if each.finding == "conflicting_labels"}
    assert set(conflicts) == {0, 1, 2}
    assert "labeled a" in conflicts[0] and "train/1 is labeled b" in conflicts[0]


def test_the_evidence_names_the_other_copy_and_how_it_differs() -> None:
    found = copies(listing_of("train", "train"), [0, 0], exact=False)
    assert [each.finding for each in found] == ["near_duplicate"] * 2
    assert "train/0, mirrored" in found[1].evidence
    assert found[1].score == pytest.approx(0.98)


def test_groups_are_numbered_from_one() -> None:
    found = copies(listing_of(*["train"] * 5), [0, 1, -1, 1, 0])
    assert {each.image: each.group for each in found} == {
        0: "duplicates-1",
        4: "duplicates-1",
        1: "duplicates-2",
        3: "duplicates-2",
    }


def test_planted_images_are_duplicates_only_if_they_are_exact() -> None:
    train = listing_of(*["train"] * 3)
    assert copies(train, [0, 0, 0], exact=False, planted={0, 1, 2}) == []
    assert copies(train, [0, 0, 0], exact=False, planted={0, 1}) == []
    assert {each.image for each in copies(train, [0, 0, 0], exact=False, planted={2})} == {0, 1}
    assert {each.image for each in copies(train, [0, 0, 0], exact=True, planted={0, 1, 2})} == {0, 1, 2}
