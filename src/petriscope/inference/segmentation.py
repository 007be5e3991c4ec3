"""Segmentation of image files: masks as indexed PNG files, overlays, and a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from petriscope.core.drawing import overlay, palette, write_png
from petriscope.core.errors import RequestError
from petriscope.core.files import cut
from petriscope.data.decode import decode_file
from petriscope.inference.predict import Rows, Wanted, rows_by_chunk
from petriscope.inference.predictor import Predictor

MOST_BYTES = 255 - len("-overlay.png")  # of the name of an image that becomes the name of a file
CHUNK = 32  # images in memory at a time, each with a probability per class and pixel


def predict_files(predictor: Predictor, paths: Sequence[Path], wanted: Wanted) -> Rows:
    """Write ``NAME.png`` (an indexed mask: pixel value = class, counted from 0) and ``NAME-overlay.png`` per image.

    Args:
        out: the folder; it is made if it does not exist.

    Returns:
        one row per image: image, mask (the file), confidence (mean over pixels), error, and the share of pixels predicted
        as each class (``share_<class>``); they are written to ``masks.csv`` in the folder.

    Raises:
        RequestError: ``out`` is missing, or has files of the same names; nothing is overwritten.
    """
    if wanted.max_error is not None or wanted.set_coverage is not None:
        raise RequestError("--max-error and --set-coverage need a classification model; this model predicts masks")
    if wanted.out is None:
        raise RequestError("this model predicts masks; give the folder to write them to with --out FOLDER")
    files = _file_names(paths, wanted.out)
    shares = [f"share_{name}" for name in predictor.classes]

    def rows_of(images: np.ndarray, paths: list[Path]) -> list[dict[str, Any]]:
        rows = []
        for path, p in zip(paths, predictor.probabilities(images, wanted.tta), strict=True):
            mask = p.argmax(0).astype(np.uint8)
            _write(path, files[path], mask, predictor)
            row = {"mask": str(files[path]), "confidence": float(p.max(0).mean())}
            found = np.bincount(mask.reshape(-1), minlength=len(shares)) / mask.size
            rows.append({**row, **dict(zip(shares, map(float, found), strict=True))})
        return rows

    columns = ["image", "mask", "confidence", "error", *shares]
    parts = rows_by_chunk(predictor, paths, columns, rows_of, CHUNK, wanted.quiet)
    return Rows(columns, parts, wanted.out / "masks.csv")


def _file_names(paths: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """The file of each image's mask. Images of equal names from different folders are numbered, as are those whose names
    differ in case alone or are equal when cut to the length that file systems allow."""
    taken: set[str] = set()
    out = {}
    for path in paths:
        stem, number = cut(path.stem, MOST_BYTES), 2
        while {stem.casefold(), f"{stem}-overlay".casefold()} & taken:
            end = f"-{number}"
            stem, number = cut(path.stem, MOST_BYTES - len(end)) + end, number + 1
        taken |= {stem.casefold(), f"{stem}-overlay".casefold()}
        for file in (folder / f"{stem}.png", folder / f"{stem}-overlay.png"):
            if file.exists():
                raise RequestError(f"{file} exists; choose another --out")
        out[path] = folder / f"{stem}.png"
    return out


def _write(path: Path, file: Path, mask: np.ndarray, predictor: Predictor) -> None:
    pixels = decode_file(path, None, predictor.recipe.data.filter, "rgb", predictor.recipe.data.bits)
    height, width = pixels.shape[:2]
    full = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    write_png(file, full, palette(len(predictor.classes)))
    write_png(file.with_stem(f"{file.stem}-overlay"), overlay(pixels, full, len(predictor.classes)))
