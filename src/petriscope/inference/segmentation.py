"""Segmentation of image files: masks as indexed PNG files, overlays, and a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from petriscope.core.drawing import overlay, palette, write_png
from petriscope.core.errors import RequestError
from petriscope.core.files import cut, more_files
from petriscope.data.decode import decode_file
from petriscope.data.in_memory import AnyFile
from petriscope.inference.base import Segments
from petriscope.inference.table import Rows, Wanted, rows_by_chunk

TABLE = "masks.csv"
MOST_BYTES = 255 - len("-overlay.png")  # of the name of an image that becomes the name of a file
CHUNK = 32  # images in memory at a time, each with a probability per class and pixel


def predict_files(model: Segments, paths: Sequence[AnyFile], wanted: Wanted) -> Rows:
    """Write ``NAME.png`` (an indexed mask: pixel value = class, counted from 0) and ``NAME-overlay.png`` per image.

    Args:
        out: the folder; it is made if it does not exist.

    Returns:
        one row per image: image, mask (the file), confidence (mean over pixels), error, and the share of pixels predicted
        as each class (``share_<class>``); they are written to ``masks.csv`` in the folder.

    Raises:
        RequestError: ``out`` is missing, or has files of the same names; nothing is overwritten.
        PetriscopeError: the disk is full or read-only; then nothing is in ``out``.
    """
    if wanted.max_error is not None or wanted.set_coverage is not None:
        raise RequestError("--max-error and --set-coverage need a classification model; this model predicts masks")
    if wanted.out is None:
        raise RequestError("this model predicts masks; give the folder to write them to with --out FOLDER")
    out = wanted.out
    names = _file_names(paths, out)
    shares = [f"share_{name}" for name in model.classes]

    def rows_of(images: np.ndarray, paths: list[AnyFile], into: Path) -> list[dict[str, Any]]:
        rows = []
        for path, p in zip(paths, model.probabilities(images, wanted.tta), strict=True):
            mask = p.argmax(0).astype(np.uint8)
            _write(path, into / names[path], mask, model)
            row = {"mask": str(out / names[path]), "confidence": float(p.max(0).mean())}
            found = np.bincount(mask.reshape(-1), minlength=len(shares)) / mask.size
            rows.append({**row, **dict(zip(shares, map(float, found), strict=True))})
        return rows

    columns = ["image", "mask", "confidence", "error", *shares]

    def parts() -> Iterator[list[dict[str, Any]]]:
        with more_files(out) as into:
            rows = rows_by_chunk(model, paths, columns, partial(rows_of, into=into), CHUNK, wanted.quiet)
            yield from Rows(columns, rows, into / TABLE)

    return Rows(columns, parts(), None)


def _file_names(paths: Sequence[AnyFile], folder: Path) -> dict[AnyFile, str]:
    """The name of each image's mask. Images of equal names from different folders are numbered, as are those whose names
    differ in case alone or are equal when cut to the length that file systems allow."""
    _check_absent(folder / TABLE)
    taken: set[str] = set()
    out = {}
    for path in paths:
        stem, number = cut(path.stem, MOST_BYTES), 2
        while {stem.casefold(), f"{stem}-overlay".casefold()} & taken:
            end = f"-{number}"
            stem, number = cut(path.stem, MOST_BYTES - len(end)) + end, number + 1
        taken |= {stem.casefold(), f"{stem}-overlay".casefold()}
        for name in (f"{stem}.png", f"{stem}-overlay.png"):
            _check_absent(folder / name)
        out[path] = f"{stem}.png"
    return out


def _check_absent(file: Path) -> None:
    if file.exists():
        raise RequestError(
            f"{file} exists; choose another --out, or remove it if it is what an interrupted predict left there"
        )


def _write(path: AnyFile, file: Path, mask: np.ndarray, model: Segments) -> None:
    pixels = decode_file(path, None, model.reading.filter, "rgb", model.reading.bits)
    height, width = pixels.shape[:2]
    full = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    write_png(file, full, palette(len(model.classes)))
    write_png(file.with_stem(f"{file.stem}-overlay"), overlay(pixels, full, len(model.classes)))
