"""YAML from outside: plain values alone, and no more of them than the text holds."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from petriscope.core.yaml_text import LONG, InvalidYaml, read_yaml

PLAIN = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text()
TREES = st.recursive(PLAIN, lambda tree: st.lists(tree) | st.dictionaries(st.text(), tree), max_leaves=20)


@given(TREES)
def test_what_is_written_is_read(tree):
    assert read_yaml(yaml.safe_dump(tree)) == tree


@given(st.text(alphabet="ab:-[]{}&*!|>%@\"'#, \n\t0", max_size=40))
def test_any_text_is_a_value_or_invalid(text):
    try:
        value = read_yaml(text)
    except InvalidYaml:
        return
    assert value is None or isinstance(value, bool | int | float | str | list | dict)


def laughs(levels: int, padding: str = "") -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join([*lines, padding])


@pytest.mark.parametrize("padding", ["", "# " + "x" * LONG])
def test_aliases_are_expanded_within_a_budget(padding):
    assert len(read_yaml(laughs(3, padding))["a2"]) == 10
    with pytest.raises(InvalidYaml, match="more than 100,000 values"):
        read_yaml(laughs(9, padding))


def test_a_long_text_without_aliases_is_no_bomb():
    assert len(read_yaml("\n".join(["- 1"] * 150_000))) == 150_000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\na: 2", "stands twice"),
        ("? [1, 2]\n: x", "a key is not a plain value"),
        ("&a [*a]", "refers to what contains it"),
        ("!!python/object/apply:os.system [ls]", "is not supported"),
        ("a: !!set {b}", "is not supported"),
        ("a: !mine 3", "is not supported"),
        ("[" * 5000, "nested too deeply"),
        ("a: [1", "expected"),
    ],
)
def test_what_is_refused(text, says):
    with pytest.raises(InvalidYaml, match=says):
        read_yaml(text)


def test_dates_stay_text():
    assert read_yaml("name: 2026-11-29") == {"name": "2026-11-29"}
