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


@pytest.mark.parametrize(
    "text",
    ["!!int ''", "!!int x", "!!int 1.5", "!!bool x", "!!float x", "!!float ''", "!!null x", "!!timestamp x", "!!binary aGk=",
     "!!map [a]", "!!seq {a: b}", "!!str [a]", "!!merge x", "<<: 3", "=: 1", "0x_", "a: <<"],
)  # fmt: skip
def test_a_value_that_is_not_what_its_tag_says_is_refused(text):
    with pytest.raises(InvalidYaml):
        read_yaml(text)


@pytest.mark.parametrize(
    "number", ["9" * 5000, "-" + "9" * 19, "0x" + "f" * 5000, "0b" + "1" * 64, str(2**63), "1:" * 50 + "0"]
)
def test_a_number_of_more_than_64_bits_is_refused_and_not_printed(number):
    with pytest.raises(InvalidYaml) as caught:
        read_yaml(f"seed: {number}")
    assert len(str(caught.value)) < 200
    assert read_yaml(f"[{2**63 - 1}, {-(2**63)}]") == [2**63 - 1, -(2**63)]


@pytest.mark.parametrize("padding", ["", "# " + "x" * LONG])
@pytest.mark.parametrize(
    "text",
    [
        "[" * 200 + "]" * 200,
        "- " * 200 + "x",
        "a0: &a0 [x]\n" + "\n".join(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 200)),
    ],
)
def test_nesting_has_an_end_by_text_and_by_alias(text, padding):
    with pytest.raises(InvalidYaml, match="nested too deeply"):
        read_yaml(f"{text}\n{padding}")


def test_messages_say_where_in_one_line():
    with pytest.raises(InvalidYaml, match=r"^[^\n]*line 2, column 4[^\n]*$"):
        read_yaml("a: 1\nb: !!int x\n")


def test_mappings_merge():
    assert read_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}")["b"] == {"x": 1, "y": 2}
