"""Renders a template to one page of HTML."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from petriscope.report import wording

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, context: dict[str, Any]) -> str:
    """The page as one string of HTML that refers to nothing outside itself.

    Args:
        template: a file name in ``report/templates``.
        context: the variables of the template, by name.
    """
    return _environment().get_template(template).render(context)


@cache
def _environment() -> Environment:
    """One for all pages, since compiling the templates takes longer than filling them in."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("petriscope.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(whole=wording.count, plural=wording.plural, glue=wording.glue)
    return environment
