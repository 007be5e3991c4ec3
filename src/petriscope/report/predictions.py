"""Predictions as a table with the images beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from PIL import Image

from petriscope.core.errors import PetriscopeError
from petriscope.inference.segmentation import overlay_of
from petriscope.report import rendering, wording
from petriscope.report.charts import Thumbnail, thumbnail

ROWS = 20
NAMED = 3  # classes whose probabilities, or shares of pixels, are written
FAMILIES = {"p_": "probabilities", "share_": "shares of pixels"}  # columns that there are one of per class
LEFT_OUT = ("answer_", "objects_", "area_")  # further ones, which are in the table all the same


class Predictions(pd.DataFrame):
    """A table with one row per image, which a notebook shows with the first images beside their rows. Whatever is made of it,
    such as a selection of rows, shows images too, as long as it has their names.

    ``pixels_of`` gives the pixels of an image by its name, uint8 [H, W, 1 or 3].
    """

    _metadata: ClassVar[list[str]] = ["pixels_of"]
    pixels_of: Callable[[str], np.ndarray] | None

    @property
    def _constructor(self) -> type[Predictions]:
        return Predictions

    def __reduce__(self) -> Any:
        """As a table without images, which may not be there any more where it is read."""
        return pd.DataFrame(self).__reduce__()

    def _repr_html_(self) -> str | None:
        pixels_of = getattr(self, "pixels_of", None)
        if pixels_of is None or not {"image", "error"} <= set(self.columns):
            return pd.DataFrame(self)._repr_html_()  # type: ignore[operator]
        rows: list[dict[str, Any]] = [
            {str(key): value for key, value in row.items()} for row in self.head(ROWS).to_dict("records")
        ]
        columns = [name for name in self.columns if name not in ("image", "mask") and not _of_class(name)]
        columns = [name for name in columns if any(not _empty(row[name]) for row in rows)]
        families = {
            words: members
            for prefix, words in FAMILIES.items()
            if (members := [name for name in self.columns if name.startswith(prefix)])
        }
        shown = [
            {
                "image": row["image"],
                "picture": _picture(row, pixels_of),
                "cells": [_cell(name, row[name]) for name in columns]
                + [_largest(row, members) for members in families.values()],
            }
            for row in rows
        ]
        context = {"columns": [*columns, *families], "rows": shown, "more": len(self) - len(rows)}
        return rendering.render("notebook_predictions.html", context)


def _of_class(name: str) -> bool:
    return name.startswith((*FAMILIES, *LEFT_OUT))


def _empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and not np.isfinite(value))


def _cell(name: str, value: Any) -> str:
    if _empty(value):
        return ""
    return wording.percent(value, 1) if name == "confidence" else str(value)


def _largest(row: Mapping[str, Any], members: Sequence[str]) -> str:
    """The largest values of a family of columns, with their classes."""
    found = [(float(row[name]), name.split("_", 1)[1]) for name in members if not _empty(row[name])]
    found.sort(key=lambda each: -each[0])
    return ", ".join(f"{name} {wording.percent(value, 1)}" for value, name in found[:NAMED])


def _picture(row: Mapping[str, Any], pixels_of: Callable[[str], np.ndarray]) -> Thumbnail | None:
    """An image, or its mask on it; None for what cannot be read, such as a file that was removed."""
    if not _empty(row["error"]):
        return None
    try:
        if (mask := row.get("mask")) is not None:
            return thumbnail(np.asarray(Image.open(overlay_of(Path(mask)))))
        return thumbnail(pixels_of(row["image"]))
    except (PetriscopeError, OSError, KeyError):
        return None
