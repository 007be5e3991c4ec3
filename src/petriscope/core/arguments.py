"""Checks of the arguments of the Python API that the command line enforces by itself, the same for all functions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from numbers import Integral, Real
from os import PathLike
from typing import Any, ParamSpec, TypeVar, get_args

from petriscope.core.errors import RequestError
from petriscope.core.recipe import TTA

P = ParamSpec("P")
R = TypeVar("R")

CHOICES: dict[str, tuple[str, ...]] = {"tta": get_args(TTA), "split": ("train", "val", "test")}
NUMBERS = ("max_error", "set_coverage", "minutes", "processor_minutes", "tiles", "gpus")
WHOLE: dict[str, int | None] = {  # and the least that each may be, unless the function has more to say of it
    "jobs": 1,
    "cpus": 1,
    "sample": 1,
    "seed": 0,
    "port": 0,
    "shards": None,
    "folds": None,
    "repeats": None,
    "stress_images": None,
    "suggest": None,
}
FLAGS = ("without_guarantee", "keep_seen")
TEXTS = ("by", "metric", "method", "final", "of")
PATHS = ("out",)


def checked_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose arguments of these names are refused where they are of another kind; None passes."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **more: P.kwargs) -> R:
        for name, value in signature.bind(*args, **more).arguments.items():
            if value is not None and (wanted := _lack(name, value)):
                raise RequestError(f"{name} must be {wanted}; got {value!r}")
        return function(*args, **more)

    return call


def _lack(name: str, value: Any) -> str:
    """What an argument must be, if it is not."""
    if name in CHOICES:
        return "" if isinstance(value, str) and value in CHOICES[name] else f"one of {', '.join(CHOICES[name])}"
    if name in NUMBERS:
        return "" if isinstance(value, Real) else "a number"
    if name in WHOLE:
        least = WHOLE[name]
        if isinstance(value, Integral) and (least is None or int(value) >= least):
            return ""
        return "a whole number" if least is None else f"a whole number from {least}"
    if name in FLAGS:
        return "" if isinstance(value, bool) else "True or False"
    if name in TEXTS:
        return "" if isinstance(value, str) else "text"
    if name in PATHS:
        return "" if isinstance(value, str | PathLike) and str(value) else "a path, as text or a Path"
    return ""
