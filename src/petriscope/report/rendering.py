"""Renders a template to one page of HTML."""

from __future__ import annotations

from typing import Any

from petriscope.report import wording


def render(template: str, context: dict[str, Any]) -> str:
    """The page as one string of HTML that refers to nothing outside itself.

    Args:
        template: a file name in ``report/templates``.
        context: the variables of the template, by name.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(
        loader=PackageLoader("petriscope.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(whole=wording.count, plural=wording.plural, glue=wording.glue)
    return pages.get_template(template).render(context)
