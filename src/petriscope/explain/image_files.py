"""Explanations of image files that are in no data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from petriscope.core.errors import RequestError, near
from petriscope.core.files import atomic
from petriscope.core.progress import progress
from petriscope.core.recipe import Part
from petriscope.explain import chosen, explain
from petriscope.explain.overlay import enlarged
from petriscope.explain.regions import largest_class
from petriscope.inference.predict import decoded
from petriscope.inference.predictor import Predictor
from petriscope.report.explanations import Shown, checked, write_page

if TYPE_CHECKING:
    import pandas as pd

MOST_ON_PAGE = 300
COLUMNS = ("image", "predicted", "confidence", "explained", "overlay", "error")
OF_MASKS = ("share", "note")
CHUNK, CHUNK_OF_MASKS = 256, 32  # images in memory at a time; of masks each has one probability per class and pixel


def explain_files(
    predictor: Predictor,
    paths: Sequence[Path],
    out: Path,
    method: str,
    of: str | None,
    results: dict[str, Any],
    quiet: bool,
) -> pd.DataFrame:
    """Overlays and a page in ``out``; see `petriscope.api.explain`. ``results``: of the run, for its checks of the method."""
    import pandas as pd

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(f"{out} exists and is not empty; choose another --out")
    if of is not None and of not in predictor.classes:
        raise RequestError(f"this model has no class {of!r}; {near(of, predictor.classes)}")
    part = chosen(predictor, method)
    columns = (*COLUMNS, *OF_MASKS) if predictor.segments else COLUMNS
    label = None if of is None else predictor.classes.index(of)
    rows: list[dict[str, Any]] = []
    shown: list[Shown] = []
    with progress("explaining", len(paths)) as bar:
        for block, images in decoded(predictor, paths, CHUNK_OF_MASKS if predictor.segments else CHUNK):
            good = [image for image in images if isinstance(image, np.ndarray)]
            found = (_of_masks if predictor.segments else _of_labels)(predictor, good, label, part)
            for path, image in zip(block, images, strict=True):
                row: dict[str, Any] = dict.fromkeys(columns)
                row["image"] = str(path)
                if isinstance(image, str):
                    row["error"] = image
                else:
                    heat, mask, facts = next(found)
                    row |= facts
                    if heat is not None:
                        region = None if mask is None else mask == predictor.classes.index(row["explained"])
                        file = out / f"{len(rows) + 1:05d}-{path.stem[:60]}.png"
                        row["overlay"] = str(_write(enlarged(image, heat, region), file))
                    if len(shown) < MOST_ON_PAGE:
                        shown.append(Shown(image, heat, str(path), mask=mask, **facts))
                rows.append(row)
                if not quiet:
                    bar.advance(1)
    table = pd.DataFrame(rows, columns=list(columns))
    if shown:
        errors = [error for error in table["error"] if error is not None]
        total, check = len(rows) - len(errors), checked(part.name, results)
        name = predictor.recipe.name
        write_page(out / "index.html", shown, part.name, name, total, errors, check, predictor.classes)
    return table


Found = Iterator[tuple[np.ndarray | None, np.ndarray | None, dict[str, Any]]]


def _of_labels(predictor: Predictor, batch: list[np.ndarray], label: int | None, part: Part) -> Found:
    """Of each image: its map, no mask, and what its row says."""
    if not batch:
        return
    images = np.stack(batch)
    found = predictor.probabilities(images)
    asked = found.argmax(1) if label is None else np.full(len(images), label)
    for p, k, heat in zip(found, asked, explain(predictor, images, asked, part), strict=True):
        facts = {"predicted": predictor.classes[int(p.argmax())], "confidence": float(p.max())}
        yield heat, None, {**facts, "explained": predictor.classes[int(k)]}


def _of_masks(predictor: Predictor, batch: list[np.ndarray], label: int | None, part: Part) -> Found:
    """Of each image: its map, None without a pixel of the class; its mask, uint8 [H, W]; and what its row says."""
    if not batch:
        return
    images = np.stack(batch)
    found = predictor.probabilities(images)
    masks = found.argmax(1).astype(np.uint8)
    largest = largest_class(masks, predictor.classes)
    asked = largest if label is None else np.full(len(images), label)
    regions = masks == asked[:, None, None]
    there = np.flatnonzero(regions.any((1, 2)))
    maps = dict(zip(there, explain(predictor, images[there], asked[there], part, regions[there]), strict=True))
    for i, (mask, region) in enumerate(zip(masks, regions, strict=True)):
        explained = predictor.classes[int(asked[i])]
        facts: dict[str, Any] = {"predicted": predictor.classes[int(largest[i])], "explained": explained}
        facts |= {"confidence": None, "share": float(region.mean()), "note": None}
        if i in maps:
            facts["confidence"] = float(found[i, asked[i]][region].mean())
        else:
            facts["note"] = f"no pixel is predicted as {explained}"
        yield maps.get(i), mask, facts


def _write(pixels: np.ndarray, path: Path) -> Path:
    from PIL import Image

    with atomic(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
    return path
