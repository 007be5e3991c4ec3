"""The modules of Petriscope that a package carries, so that it predicts where Petriscope is not installed."""

from __future__ import annotations

import ast
from pathlib import Path

ENTRY = "petriscope.inference.offline"
ROOT = Path(__file__).parents[1]


def carried_modules(entry: str = ENTRY) -> list[str]:
    """A module and all modules of Petriscope that it imports, directly or not, sorted. Imports for type checking do not count."""
    found: set[str] = set()
    waiting = [entry]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        waiting += _imported(ast.parse(_path(name).read_text(encoding="utf-8")))
    return sorted(found)


def _imported(tree: ast.AST) -> list[str]:
    """The modules of Petriscope that a file imports."""
    out: list[str] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("petriscope"):
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            out += [name for name in inner if _is_module(name)] or [str(node.module)]
        elif isinstance(node, ast.Import):
            out += [alias.name for alias in node.names if alias.name.startswith("petriscope")]
        else:
            out += _imported(node)
    return out


def _is_module(name: str) -> bool:
    return _path(name).is_file()


def _path(name: str) -> Path:
    return ROOT.joinpath(*name.split(".")[1:]).with_suffix(".py")


def carried_files() -> dict[str, str]:
    """The files of the folder ``lib``, by path: the modules as they are, and an empty ``__init__.py`` in each folder."""
    out: dict[str, str] = {}
    for name in carried_modules():
        parts = name.split(".")
        out["/".join(parts) + ".py"] = _path(name).read_text(encoding="utf-8")
        for length in range(1, len(parts)):
            out.setdefault("/".join(parts[:length]) + "/__init__.py", "")
    return out
