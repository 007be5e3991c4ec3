"""CSV that no spreadsheet computes, and that is read back as it was."""

from __future__ import annotations

import csv
import io

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from petriscope.core.csv_tables import csv_lines, csv_text, read_csv

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


ANY_TEXT = st.one_of(
    TEXTS, st.text(st.characters(codec="utf-8"), max_size=8), st.text(st.sampled_from("\",\r\n\0 '=;a"))
)
CELLS = {  # columns of tables have values of one kind
    "text": st.none() | ANY_TEXT,
    "float": st.none() | st.floats(),
    "int": st.integers(-(2**63), 2**63 - 1),
    "bool": st.booleans(),
    "nothing": st.none(),
}


@given(st.data())
def test_lines_without_pandas_are_those_of_pandas(data):
    kinds = data.draw(st.dictionaries(ANY_TEXT, st.sampled_from(sorted(CELLS)), min_size=1, max_size=4))
    rows = data.draw(st.lists(st.fixed_dictionaries({name: CELLS[kind] for name, kind in kinds.items()}), max_size=4))
    for header in (True, False):
        expected = csv_text(pd.DataFrame(rows, columns=list(kinds)), header)
        assert csv_lines(list(kinds), rows, header) == expected


@pytest.mark.parametrize(
    ("cell", "written"),
    [("=1+1", "'=1+1"), ("'=1", "''=1"), ("'tis", "'tis"), ("-5", "-5"), ("-5e-3", "-5e-3"), ("-a", "'-a"), ("²", "²")],
)
def test_only_what_begins_a_formula_is_marked(cell, written):
    assert csv_text(pd.DataFrame({"cell": [cell]})) == f"cell\n{written}\n"


def test_numbers_stay_numbers():
    table = pd.DataFrame({"a": [-1.5, None], "b": [-2, 3], "c": [True, False], "d": [-1.5, None]}).astype({"d": object})
    assert csv_text(table) == "a,b,c,d\n-1.5,-2,True,-1.5\n,3,False,\n"
