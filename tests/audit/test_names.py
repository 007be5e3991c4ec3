"""What `petriscope.audit` exports."""

from __future__ import annotations

from importlib import import_module
from pkgutil import walk_packages

import pytest

from petriscope import audit


@pytest.mark.parametrize("name", audit.__all__)
def test_a_name_is_what_it_says_even_if_a_module_was_imported_first(name: str) -> None:
    for module in walk_packages(audit.__path__, "petriscope.audit."):
        import_module(module.name)
    assert getattr(audit, name).__name__ == name
