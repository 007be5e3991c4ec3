"""What the command line says of the models."""

from __future__ import annotations

import inspect
from typing import Any, get_args, get_origin

from petriscope.models import MODELS


def model_rows() -> list[tuple[str, str]]:
    """Name and summary of every model."""
    return [(name, _summary(MODELS.find(name))) for name in MODELS.members]


def describe_model(name: str) -> str:
    """A model's documentation, its options with their types and defaults, and its size on 28x28 RGB with 8 classes."""
    from petriscope.evaluation.cost import multiply_adds, parameters
    from petriscope.models import build_model
    from petriscope.recipe import Part

    model = build_model(Part(name=name), 8, (28, 28, 3))
    lines = [inspect.getdoc(MODELS.find(name)) or "", "", "Options, with their defaults:"]
    lines += [f"  {key}: {default!r}  {_words(kind)}" for key, (kind, default) in MODELS.options(name).items()]
    size = f"{parameters(model):,} parameters, {multiply_adds(model, (28, 28, 3)) / 1e6:,.1f} M multiply-adds"
    return "\n".join([*lines, "", f"At 28x28 RGB with 8 classes: {size}"])


def _summary(member: Any) -> str:
    return (inspect.getdoc(member) or "").partition("\n")[0]


def _words(annotation: Any) -> str:
    """An annotation for people: ``none | batch | layer``."""
    values = get_args(annotation)
    if "Literal" in str(get_origin(annotation)):
        return "(" + " | ".join(map(str, values)) + ")"
    return (
        f"({getattr(values[0] if values and get_origin(annotation) is None else annotation, '__name__', annotation)})"
    )
