"""Classes of image files that are in no data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from petriscope.core.errors import DataError, RequestError
from petriscope.core.progress import progress
from petriscope.data.decode import decode_file, workers
from petriscope.data.sources.folders import is_image
from petriscope.inference.predictor import Predictor
from petriscope.inference.tta import TTA
from petriscope.trust.abstention import plan_answers

if TYPE_CHECKING:
    import pandas as pd

CHUNK = 256  # images decoded, and in memory, at a time


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Files as they are given, and the images anywhere below folders.

    Raises:
        RequestError: a path does not exist, or a folder holds no image.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(
                p for p in path.rglob("*") if p.is_file() and is_image(p.name) and not p.name.startswith(".")
            )
            if not inside:
                raise RequestError(f"no images in {path}")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise RequestError(f"no such image or folder: {path}")
    return found


def predict_files(
    predictor: Predictor,
    paths: Sequence[Path],
    tta: TTA | None,
    quiet: bool,
    max_error: float | None = None,
    sets: float | None = None,
) -> pd.DataFrame:
    """One row per image; see `petriscope.api.predict`."""
    import pandas as pd

    names = [f"p_{name}" for name in predictor.classes]
    answering = plan_answers(predictor, tta, max_error, sets, quiet)
    said = ["answer", "why"] if sets is None else ["answer", "why", "set"]
    rows: list[dict[str, Any]] = []
    with progress("predicting", len(paths)) as bar:
        for block, images in decoded(predictor, paths):
            good = [image for image in images if isinstance(image, np.ndarray)]
            answers = predictor.answer(np.stack(good), tta) if good else None
            found = iter(zip(answers.probabilities, answering.words(answers), strict=True) if answers else ())
            for path, image in zip(block, images, strict=True):
                row: dict[str, Any] = {"image": str(path), "predicted": None, "confidence": None, "error": None}
                if isinstance(image, str):
                    row["error"] = image
                else:
                    p, words = next(found)
                    row |= {"predicted": predictor.classes[int(p.argmax())], "confidence": float(p.max()), **words}
                    row |= dict(zip(names, map(float, p), strict=True))
                rows.append(row)
            if not quiet:
                bar.advance(len(block))
    return pd.DataFrame(rows, columns=["image", "predicted", "confidence", "error", *said, *names])


def decoded(
    predictor: Predictor, paths: Sequence[Path], chunk: int = CHUNK
) -> Iterator[tuple[Sequence[Path], list[np.ndarray | str]]]:
    """Chunks of paths with their images, uint8 [H, W, C] as the model takes them, or with what is wrong with them."""
    height, width, channels = predictor.shape
    data = predictor.recipe.data

    def attempt(path: Path) -> np.ndarray | str:
        try:
            return decode_file(path, (height, width), data.filter, "gray" if channels == 1 else "rgb", data.bits)
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor(workers()) as pool:
        for start in range(0, len(paths), chunk):
            block = paths[start : start + chunk]
            yield block, list(pool.map(attempt, block))
