"""Names are compared as people read them."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petriscope.core.names import look_alike, tidy


@given(st.text(), st.sampled_from(["", " ", "\t", "\ufeff", "\u00a0", " \ufeff "]), st.sampled_from(["NFC", "NFD"]))
def test_a_name_is_the_same_in_both_forms_of_unicode_and_with_space_around_it(name, space, form):
    once = tidy(name)
    assert tidy(once) == once == tidy(space + unicodedata.normalize(form, name) + space)


@pytest.mark.parametrize(
    "pair", ["cat|CAT", "red cell|red_cell", "red  cell|Red-Cell", "7|007", "strasse|Straße", "ab|a\u200db"]
)
def test_names_that_look_alike(pair):
    one, other = pair.split("|")
    assert look_alike(["x", one, "y", other]) == (one, other)


@given(
    st.lists(
        st.sampled_from(["cat", "cats", "1", "10", "-1", "1.5", "15", "a-1", "a1", "²", "2", "Ⅱ", ""]), unique=True
    )
)
def test_other_names_do_not(names):
    assert look_alike(sorted({*names} - {"²", "2"})) is None
    assert look_alike([*names, *names]) is None or {"²", "2"} <= {*names}
