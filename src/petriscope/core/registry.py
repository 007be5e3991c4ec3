"""Parts that a recipe names: models, augmentations, losses, optimizers, schedules.

A family of parts is a `Registry`: names, each with the place of a class or function. Its keyword-only parameters are
the options a recipe may give; their annotations are the schema. So a part is declared once, where it is written.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model, field_validator

from petriscope.core.errors import RequestError, near, shown
from petriscope.core.recipe import Part, explain, no_truth_value

MOST = 1_000_000  # of a whole number among the options of a part
LONGEST = 10_000  # entries of a list among them


@dataclass(frozen=True)
class Registry:
    """A family of parts.

    Args:
        kind: what a member is, for messages: ``model``, ``augmentation``.
        members: name in a recipe -> ``module:attribute``, imported when first used.
    """

    kind: str
    members: dict[str, str]

    def find(self, name: str) -> Callable[..., Any]:
        if name not in self.members:
            raise RequestError(f"no {self.kind} {shown(name)}; {near(name, self.members)}")
        module, _, attribute = self.members[name].partition(":")
        return getattr(import_module(module), attribute)

    def options(self, name: str) -> dict[str, tuple[Any, Any]]:
        """The options of a member: name -> (annotation, default)."""
        member = self.find(name)
        target = member.__init__ if inspect.isclass(member) else member
        hints = get_type_hints(target, include_extras=True)
        return {
            key: (hints.get(key, Any), ... if parameter.default is parameter.empty else parameter.default)
            for key, parameter in inspect.signature(target).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        }

    def check(self, part: Part, where: str | None = None) -> dict[str, Any]:
        """The options of ``part``, coerced to their types, defaults filled in.

        Raises:
            RequestError: an unknown name, an unknown option, a value out of range.
        """
        fields: dict[str, Any] = self.options(part.name)
        schema = create_model(
            part.name,
            __config__=ConfigDict(extra="forbid", allow_inf_nan=False),
            __validators__={"no_truth_value": field_validator("*", mode="before")(no_truth_value)},
            **fields,
        )
        try:
            checked = schema.model_validate(part.options)
        except ValidationError as error:
            raise RequestError(explain(error, schema, where or f"{self.kind} {part.name}")) from None
        values = {key: getattr(checked, key) for key in type(checked).model_fields}
        for key, value in values.items():
            if not _within_bounds(value):
                raise RequestError(
                    f"{where or f'{self.kind} {part.name}'}: {key} cannot be {shown(value)}: whole numbers lie within "
                    f"{MOST:,}, and lists have at most {LONGEST:,} entries"
                )
        return values

    def build(self, part: Part, *context: Any) -> Any:
        """Make the part: ``context`` goes to its positional parameters, its options to the keyword-only ones."""
        return self.find(part.name)(*context, **self.check(part))


def _within_bounds(value: Any) -> bool:
    """Whether an option is of a size that something can be built from, whatever part it is of."""
    if isinstance(value, int):
        return abs(value) <= MOST
    if isinstance(value, tuple | list):
        return len(value) <= LONGEST and all(map(_within_bounds, value))
    return True
