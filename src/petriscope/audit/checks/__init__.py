"""The checks of an audit, one module each. A new module that defines a subclass of `Check` is found by itself."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from petriscope.audit.base import Check, FindingInfo

__all__ = ["all_checks", "all_findings"]


def all_checks() -> tuple[Check, ...]:
    """Every check, in the order of their findings in the table and on the page."""
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    return tuple(check() for check in sorted(Check.registered, key=lambda each: (each.order, each.__name__)))


def all_findings() -> dict[str, FindingInfo]:
    """Everything that checks can find, by name, in order."""
    return {info.name: info for check in all_checks() for info in check.findings}
