"""Names are compared as people read them."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petriscope.core.errors import DataError
from petriscope.core.names import look_alike, names_in_lines, tidy


@given(st.text(), st.sampled_from(["", " ", "\t", "\ufeff", "\u00a0", " \ufeff "]), st.sampled_from(["NFC", "NFD"]))
def test_a_name_is_the_same_in_both_forms_of_unicode_and_with_space_around_it(name, space, form):
    once = tidy(name)
    assert tidy(once) == once == tidy(space + unicodedata.normalize(form, name) + space)


@pytest.mark.parametrize(
    "pair",
    [
        "cat|CAT",
        "red cell|red_cell",
        "red  cell|Red-Cell",
        "7|007",
        "strasse|Straße",
        "ab|a\u200db",
    ],
)
def test_names_that_look_alike(pair):
    one, other = pair.split("|")
    assert look_alike(["x", one, "y", other]) == (one, other)


@pytest.mark.parametrize("names", ["True|1", "no|yes|FALSE", "0.0|no|1"])
def test_truth_values_look_alike_where_all_names_are_some(names):
    assert look_alike(names.split("|")) is not None
    assert look_alike([*names.split("|"), "SE"]) is None


@given(
    st.lists(
        st.sampled_from(["cat", "cats", "1", "10", "-1", "1.5", "15", "a-1", "a1", "²", "2", "Ⅱ", ""]), unique=True
    )
)
def test_other_names_do_not(names):
    assert look_alike(sorted({*names} - {"²", "2"})) is None
    assert look_alike([*names, *names]) is None or {"²", "2"} <= {*names}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("sky\n\n  road \n", ["sky", "road"]),
        ("0 sky\n1 road", ["sky", "road"]),
        ("0: sky\r\n1: dirt road\r\n", ["sky", "dirt road"]),
        ("0,sky\n1,road\n2,2 cars", ["sky", "road", "2 cars"]),
        ("0. sky\n1. road", ["sky", "road"]),
        ("2 cars\n3 cars", ["2 cars", "3 cars"]),
        ("0 sky\nroad", ["0 sky", "road"]),
        ("0\n1\n2", ["0", "1", "2"]),
        ("10\n20\n30", ["10", "20", "30"]),
        ("0 sky", ["0 sky"]),
        ("", []),
    ],
)
def test_names_in_lines_are_without_their_numbers(text, names):
    assert names_in_lines(text, "classes.txt") == names


def test_names_numbered_from_one_are_refused():
    with pytest.raises(DataError, match=r"classes.txt numbers its classes from 1 \(1 sky\); it must name them from 0"):
        names_in_lines("1 sky\n2 road", "classes.txt")


@pytest.mark.parametrize(
    "text", ["0 sky\n2 road\n1 car", "2: road\n0: sky\n1: car", "sky: 0\nroad: 2\ncar: 1", "car,1\nroad,2\nsky,0"]
)
def test_numbers_say_the_order_of_names(text):
    assert names_in_lines(text, "classes.txt") == ["sky", "car", "road"]


@pytest.mark.parametrize("text", ["grade: 0\ngrade: 1", "type,1\ntype,2", "1 of 2\n1 of 3", "week 3\nweek 1"])
def test_numbers_that_belong_to_names_stay(text):
    assert names_in_lines(text, "classes.txt") == text.splitlines()
