"""Read YAML that comes from outside: plain values, mappings and sequences, every key once, and no more of them than the text
could hold without aliases."""

from __future__ import annotations

from typing import Any

import yaml

NODES = 100_000  # values that aliases may expand a short text to
LONG = 100_000  # characters, from which libyaml's loader is used if it is available: it is ten times as fast
CORE = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map", "merge"))
TIMESTAMP = "tag:yaml.org,2002:timestamp"


class InvalidYaml(ValueError):
    """The text is no YAML of this kind; the message says where."""


def read_yaml(text: str) -> Any:
    """The value of a YAML document: None, bool, int, float, str, list or dict; dates stay text.

    Raises:
        InvalidYaml: a syntax error, a key that stands twice or is no plain value, a tag beyond the core schema, or aliases
            that expand to more than `NODES` values.
    """
    loader = _FastLoader if len(text) >= LONG else _Loader
    try:
        return yaml.load(text, loader)
    except RecursionError:
        raise InvalidYaml("it is nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise InvalidYaml(str(error)) from None


class _Checks:
    """Put before a loader of PyYAML's."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()  # type: ignore[misc]
        if node is not None:
            _expanded(node, {})
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # type: ignore[attr-defined]
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)  # type: ignore[misc]


class _Loader(_Checks, yaml.SafeLoader):
    pass


class _FastLoader(_Checks, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    pass


def _expanded(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node comes to when its aliases are expanded; 0 while that is being counted.

    Args:
        known: the number of each node that was counted, by its identity.
    """
    if (count := known.get(id(node))) is not None:
        if count == 0:
            raise yaml.composer.ComposerError(None, None, "an alias refers to what contains it", node.start_mark)
        return count
    known[id(node)] = 0
    if node.tag == TIMESTAMP:
        node.tag = "tag:yaml.org,2002:str"
    if node.tag not in CORE:
        raise yaml.constructor.ConstructorError(None, None, f"the tag {node.tag} is not supported", node.start_mark)
    count = 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is not a plain value", key.start_mark)
            count += _expanded(key, known) + _expanded(value, known)
    elif isinstance(node, yaml.SequenceNode):
        count += sum(_expanded(item, known) for item in node.value)
    if count > NODES and count > node.end_mark.index - node.start_mark.index + 1:
        raise yaml.composer.ComposerError(
            None, None, f"its aliases expand to more than {NODES:,} values", node.start_mark
        )
    known[id(node)] = count
    return count
