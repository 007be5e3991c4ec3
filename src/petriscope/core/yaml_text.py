"""Read YAML that comes from outside: plain values, mappings and sequences, every key once, and no more of them than the text
could hold without aliases."""

from __future__ import annotations

from typing import Any

import yaml

from petriscope.core.errors import shown

NODES = 100_000  # values that aliases may expand a short text to
LONG = 100_000  # characters, from which libyaml's loader is used if it is available: it is ten times as fast
WHOLE = 2**63  # whole numbers lie below it, as in JSON that other languages read
DEPTH = 100  # levels of nesting
DIGITS = 100  # of a whole number, with signs; 64 bits written in twos are fewer
CORE = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map", "merge"))
STR, INT, FLOAT, MERGE, TIMESTAMP = (
    f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "merge", "timestamp")
)


class InvalidYaml(ValueError):
    """The text is no YAML of this kind; the message says where."""


def read_yaml(text: str) -> Any:
    """The value of a YAML document: None, bool, int, float, str, list or dict; dates stay text.

    Raises:
        InvalidYaml: a syntax error, a key that stands twice or is no plain value, a tag beyond the core schema or one that its
            value does not fit, a number of 64 bits or more, or aliases that expand to more than `NODES` values.
    """
    loader = _FastLoader if len(text) >= LONG else _Loader
    try:
        return yaml.load(text, loader)
    except RecursionError:
        raise InvalidYaml("it is nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        raise InvalidYaml(_said(error)) from None
    except yaml.reader.ReaderError as error:
        raise InvalidYaml(f"character {error.position + 1:,} is none that YAML allows: {error.reason}") from None
    except (yaml.YAMLError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise InvalidYaml(shown(str(error))) from None


def _said(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    place = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
    return (error.problem or error.context or "a syntax error") + place


class _Checks:
    """Put before a loader of PyYAML's."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()  # type: ignore[misc]
        if node is not None:
            self._expanded(node, {})
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        short = len(node.value) <= DIGITS
        value = super().construct_yaml_int(node) if short else WHOLE  # type: ignore[misc]
        if not -WHOLE <= value < WHOLE:
            raise _refused("a whole number of more than 64 bits", node)
        return value

    def construct_yaml_str(self, node: yaml.ScalarNode) -> str:
        value = super().construct_yaml_str(node)  # type: ignore[misc]
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _refused("half of a surrogate pair, which is no character", node) from None
        return value

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == MERGE:
                continue
            key = self.construct_object(key_node, deep=True)  # type: ignore[attr-defined]
            if key in seen:
                raise _refused(f"the key {shown(key)} stands twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)  # type: ignore[misc]

    def _expanded(self, node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
        """How many values a node comes to when its aliases are expanded, and how deep they are nested.

        Args:
            known: the same of each node that was looked at, by its identity; zeros while that is being done.
        """
        if (found := known.get(id(node))) is not None:
            if found == (0, 0):
                raise _refused("an alias refers to what contains it", node)
            return found
        known[id(node)] = (0, 0)
        self._check_tag(node)
        below: list[tuple[int, int]] = []
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise _refused("a key is not a plain value", key)
                below += self._expanded(key, known), self._expanded(value, known)
        elif isinstance(node, yaml.SequenceNode):
            below += [self._expanded(item, known) for item in node.value]
        count, depth = 1 + sum(count for count, _ in below), 1 + max((depth for _, depth in below), default=0)
        if count > NODES and count > node.end_mark.index - node.start_mark.index + 1:
            raise _refused(f"its aliases expand to more than {NODES:,} values", node)
        if depth > DEPTH:
            raise RecursionError
        known[id(node)] = count, depth
        return known[id(node)]

    def _check_tag(self, node: yaml.Node) -> None:
        """Check that a tag is known and that its value is what the tag says. Dates become text."""
        scalar = isinstance(node, yaml.ScalarNode)
        found = self.resolve(type(node), node.value if scalar else None, (True, False))  # type: ignore[attr-defined]
        fits = node.tag == found or (scalar and node.tag == STR) or (node.tag, found) == (FLOAT, INT)
        if node.tag in (*CORE, TIMESTAMP) and not fits:
            value = shown(node.value) if scalar else found.rpartition(":")[2]
            raise _refused(f"{value} is no {node.tag.rpartition(':')[2]}", node)
        if node.tag == TIMESTAMP:
            node.tag = STR
        if node.tag not in CORE:
            raise _refused(f"the tag {shown(node.tag)} is not supported", node)


class _Loader(_Checks, yaml.SafeLoader):
    pass


class _FastLoader(_Checks, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    pass


_loader: Any
for _loader in (_Loader, _FastLoader):
    _loader.add_constructor(INT, _loader.construct_yaml_int)
    _loader.add_constructor(STR, _loader.construct_yaml_str)


def _refused(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
