"""How large objects are in images, as people write it: a factor, or micrometers per pixel."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from numbers import Real
from typing import TypeAlias

from petriscope.core.errors import RequestError, shown

# Times that objects are enlarged about the center of the image; or micrometers per pixel of the files, such as ``0.1um``.
Scale: TypeAlias = float | str
ESTIMATED = "estimated"  # the factor is estimated from the images
LEAST, MOST = 0.1, 10.0  # factors; others are taken for mistakes
_MICROMETERS = re.compile(r"([0-9.]+(?:e[+-]?\d+)?)\s*[uµμ]m", re.IGNORECASE)  # the micro sign, and the Greek letter


def read_scale(value: object) -> Scale:
    """A factor as a float, or micrometers per pixel as text such as ``0.1um``.

    Raises:
        ValueError: it is neither, or a factor beyond `LEAST` and `MOST`.
    """
    text = value.strip() if isinstance(value, str) else value
    match = _MICROMETERS.fullmatch(text) if isinstance(text, str) else None
    number = math.nan
    if isinstance(text, str | Real) and not isinstance(text, bool):
        with suppress(ValueError, OverflowError):
            number = float(match[1] if match else text)
    if match and 0 < number < math.inf:
        return f"{number!r}um"
    if not match and LEAST <= number <= MOST:
        return number
    raise ValueError(
        f"it must be a factor from {LEAST:g} to {MOST:g}, such as 1.3, or micrometers per pixel of the files, such as 0.1um"
    )


def asked_scale(value: object) -> Scale | None:
    """What was asked for as ``--scale`` or ``scale=``: as `read_scale`, or `ESTIMATED`; None: nothing.

    Raises:
        RequestError: it is none of these.
    """
    if value is None or value == ESTIMATED:
        return None if value is None else ESTIMATED
    try:
        return read_scale(value)
    except ValueError as error:
        raise RequestError(f"the scale cannot be {shown(value)}: {error}; or {ESTIMATED}") from None


def micrometers(scale: Scale) -> float | None:
    """Micrometers per pixel; None for a factor."""
    return float(scale.removesuffix("um")) if isinstance(scale, str) else None


def in_words(scale: Scale) -> str:
    """A scale for a sentence: ``1.3 times``, ``0.1 um per pixel``."""
    um = micrometers(scale)
    return f"{float(scale):.4g} times" if um is None else f"{um:g} um per pixel"
