"""CSV that no spreadsheet computes, and that is read back as it was."""

from __future__ import annotations

import csv
import io

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from petriscope.core.csv_tables import csv_text, read_csv

STARTS = st.sampled_from(["", "=", "+", "-", "@", "\t", "'", "''", "'=", "-1"])
TEXTS = st.builds(str.__add__, STARTS, st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=5))


@given(st.lists(st.tuples(TEXTS, st.floats(allow_nan=False)), min_size=1), TEXTS)
def test_no_cell_is_a_formula_and_reading_gives_what_was_written(rows, name):
    table = pd.DataFrame(rows, columns=[f"{name}x", "number"])
    text = csv_text(table)
    for row in list(csv.reader(io.StringIO(text)))[1:]:
        assert not row[0].startswith(("=", "+", "-", "@", "\t")) or float(row[0]) is not None
    back = read_csv(io.StringIO(text))
    assert back.iloc[:, 0].tolist() == [cell for cell, _ in rows]
    assert [float(cell) for cell in back["number"]] == [number for _, number in rows]


@pytest.mark.parametrize(
    ("cell", "written"),
    [("=1+1", "'=1+1"), ("'=1", "''=1"), ("'tis", "'tis"), ("-5", "-5"), ("-5e-3", "-5e-3"), ("-a", "'-a"), ("²", "²")],
)
def test_only_what_begins_a_formula_is_marked(cell, written):
    assert csv_text(pd.DataFrame({"cell": [cell]})) == f"cell\n{written}\n"


def test_numbers_stay_numbers():
    table = pd.DataFrame({"a": [-1.5, None], "b": [-2, 3], "c": [True, False], "d": [-1.5, None]}).astype({"d": object})
    assert csv_text(table) == "a,b,c,d\n-1.5,-2,True,-1.5\n,3,False,\n"
