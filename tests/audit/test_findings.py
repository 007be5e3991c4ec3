"""One decision per image, the table, and the names that --fail-on accepts."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from petriscope.audit.base import Finding, Listing
from petriscope.audit.checks import all_findings
from petriscope.audit.findings import STRONGEST_FIRST, final_decisions, kinds_of, make_table
from petriscope.core.errors import RequestError

LISTING = Listing(
    *(np.array(column, dtype=object) for column in (["x", "y", "z"], ["train", "test", "all"], ["a", "a", "b"]))
)


def decided(found: list[Finding]) -> dict[int, str]:
    return {image: verdict for image, (verdict, _, _) in final_decisions(found).items()}


def test_the_strongest_decision_wins_and_has_the_reasons() -> None:
    found = [
        Finding(0, "dark", "", 1, "review", "dark"),
        Finding(0, "blank", "", 1, "drop", "blank"),
        Finding(0, "exact_duplicate", "", 1, "keep", "this copy is kept"),
        Finding(0, "label_error", "", 1, "relabel", "looks like b", suggested="b"),
        Finding(1, "exact_duplicate", "", 1, "keep", "this copy is kept"),
    ]
    assert final_decisions(found) == {
        0: ("drop", "dark; blank; looks like b", "b"),
        1: ("keep", "this copy is kept", ""),
    }


def test_strength_of_decisions() -> None:
    for stronger, weaker in pairwise(STRONGEST_FIRST):
        found = [Finding(0, "dark", "", 1, weaker, ""), Finding(0, "bright", "", 1, stronger, "")]
        assert decided(found) == {0: stronger}


def test_the_table_survives_both_file_formats(tmp_path: Path) -> None:
    found = [
        Finding(index, name, 'its copy, "quoted"', 1 / 3, "drop", "a copy", "duplicates-1")
        for index in range(2)
        for name in ("exact_duplicate", "leak")
    ]
    table = make_table(LISTING, found)
    assert list(table.columns) == [
        *("id", "split", "label", "finding", "evidence", "score", "group", "decision", "reason", "suggested_label")
    ]
    assert table["finding"].tolist() == ["leak"] * 2 + ["exact_duplicate"] * 2
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet", index=False)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "t.csv", keep_default_na=False), table, check_dtype=False)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), table, check_dtype=False)


def test_an_empty_table_has_all_columns() -> None:
    assert len(make_table(LISTING, []).columns) == 10


@pytest.mark.parametrize(
    ("names", "kinds"),
    [
        ("leaks,conflicts", ["leak", "conflicting_labels"]),
        ("leak", ["leak"]),
        ("near-duplicate, duplicates", ["near_duplicate", "exact_duplicate"]),
        ("any", list(all_findings())),
    ],
)
def test_kinds_are_named_alone_or_by_family(names: str, kinds: list[str]) -> None:
    assert kinds_of(names) == kinds


@pytest.mark.parametrize(("names", "near"), [("leeks", "leaks"), ("leaks,conflict", "conflicts"), ("", "known:")])
def test_an_unknown_kind_names_the_near_ones(names: str, near: str) -> None:
    with pytest.raises(RequestError, match=near):
        kinds_of(names)
