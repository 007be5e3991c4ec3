"""Explanations of picture files that are in no data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from petriscope.classifier import Classifier
from petriscope.errors import RequestError, near
from petriscope.explain import chosen, explain
from petriscope.explain.overlay import enlarged
from petriscope.files import atomic
from petriscope.predicting import decoded
from petriscope.progress import progress
from petriscope.report.explanations import Shown, checked, write_page

if TYPE_CHECKING:
    import pandas as pd

MOST_ON_PAGE = 300
COLUMNS = ("picture", "predicted", "confidence", "explained", "overlay", "error")


def explain_files(
    classifier: Classifier,
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
    if of is not None and of not in classifier.classes:
        raise RequestError(f"this model has no class {of!r}; {near(of, classifier.classes)}")
    part = chosen(classifier, method)
    rows: list[dict[str, Any]] = []
    shown: list[Shown] = []
    with progress("explaining", len(paths)) as bar:
        for block, pictures in decoded(classifier, paths):
            good = [picture for picture in pictures if isinstance(picture, np.ndarray)]
            images = np.stack(good) if good else np.zeros((0, *classifier.shape), dtype=np.uint8)
            found = classifier.probabilities(images) if good else np.zeros((0, len(classifier.classes)))
            asked = found.argmax(1) if of is None else np.full(len(good), classifier.classes.index(of))
            mapped = zip(found, asked, explain(classifier, images, asked, part), strict=True)
            for path, picture in zip(block, pictures, strict=True):
                row: dict[str, Any] = dict.fromkeys(COLUMNS)
                row["picture"] = str(path)
                if isinstance(picture, str):
                    row["error"] = picture
                else:
                    p, label, heat = next(mapped)
                    row |= {"predicted": classifier.classes[int(p.argmax())], "confidence": float(p.max())}
                    row |= {"explained": classifier.classes[int(label)]}
                    row["overlay"] = str(
                        _write(enlarged(picture, heat), out / f"{len(rows) + 1:05d}-{path.stem[:60]}.png")
                    )
                    if len(shown) < MOST_ON_PAGE:
                        shown.append(
                            Shown(picture, heat, str(path), row["predicted"], row["confidence"], row["explained"])
                        )
                rows.append(row)
                if not quiet:
                    bar.advance(1)
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    if shown:
        errors = [error for error in table["error"] if error is not None]
        total, check = len(rows) - len(errors), checked(part.name, results)
        write_page(out / "index.html", shown, part.name, classifier.recipe.name, total, errors, check)
    return table


def _write(pixels: np.ndarray, path: Path) -> Path:
    from PIL import Image

    with atomic(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
    return path
