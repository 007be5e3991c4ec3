"""Segmentation of image files: masks as indexed PNG files, overlays, and a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from petriscope.core.drawing import overlay, palette, write_png
from petriscope.core.errors import RequestError
from petriscope.core.files import cut, more_files
from petriscope.core.progress import say
from petriscope.data.decode import resize, workers
from petriscope.data.in_memory import AnyFile
from petriscope.data.tiles import blended
from petriscope.inference.base import Segments
from petriscope.inference.decoding import pixels_to_show
from petriscope.inference.objects import ObjectCounter
from petriscope.inference.table import Rows, Wanted, rows_by_chunk

if TYPE_CHECKING:
    from petriscope.core.recipe import TTA

TABLE = "masks.csv"
MOST_BYTES = 255 - len("-overlay.png")  # of the name of an image that becomes the name of a file
CHUNK = 32  # images in memory at a time, each with a probability per class and pixel
LARGER = 2  # times that an image is larger than what the model sees of it, from which on that is said


def segment(
    model: Segments, images: Sequence[np.ndarray], tta: TTA | None = None
) -> Iterator[tuple[np.ndarray, float]]:
    """The masks of images and how certain they are, image by image.

    Args:
        images: uint8 [H, W, C] each; in the model's shape, unless it predicts by tiles (`Reading.overlap`).

    Yields:
        the class of each pixel, uint8 [H, W]; and the mean over pixels of the probability of that class.
    """
    overlap, (*size, _) = model.reading.overlap, model.shape
    if overlap is None:
        for p in model.probabilities(np.stack(images), tta) if images else ():
            yield p.argmax(0).astype(np.uint8), float(p.max(0).mean())
        return

    def predict(tiles: np.ndarray) -> np.ndarray:
        return model.probabilities(tiles, tta)

    for image in images:
        mask, certain = np.empty(image.shape[:2], np.uint8), 0.0
        for top, p in blended(predict, image, (size[0], size[1]), overlap, len(model.classes)):
            mask[top : top + p.shape[1]] = p.argmax(0)
            certain += float(p.max(0).sum(dtype=np.float64))
        yield mask, certain / mask.size


def predict_files(model: Segments, paths: Sequence[AnyFile], wanted: Wanted) -> Rows:
    """Write ``NAME.png`` (an indexed mask: pixel value = class, counted from 0) and ``NAME-overlay.png`` per image.

    Args:
        wanted: what to write, and the folder, which is made if it does not exist.

    Returns:
        one row per image: image, mask (the file), confidence (mean over pixels), error, the share of pixels predicted
        as each class (``share_<class>``), and for each class but the background the number of its objects
        (``objects_<class>``) and the median of their areas in pixels of the file (``area_<class>``). An object is what
        hangs together, also at corners. The rows are written to ``masks.csv`` in the folder.

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
    objects, in_tiles = ObjectCounter(model.classes, wanted.quiet), model.reading.overlap is not None
    larger: list[AnyFile] = []

    def rows_of(images: list[np.ndarray], paths: list[AnyFile], into: Path) -> list[dict[str, Any]]:
        rows = []
        for path, (mask, confidence) in zip(paths, segment(model, images, wanted.tta), strict=True):
            full = _write(path, into / names[path], mask, model)
            if max(np.divide(full.shape, mask.shape)) >= LARGER:
                larger.append(path)
            row = {"mask": str(out / names[path]), "confidence": confidence}
            found = np.bincount(mask.reshape(-1), minlength=len(shares)) / mask.size
            rows.append({**row, **dict(zip(shares, map(float, found), strict=True)), **objects.count(full)})
        return rows

    columns = ["image", "mask", "confidence", "error", *shares, *objects.columns]

    def parts() -> Iterator[list[dict[str, Any]]]:
        with more_files(out) as into:
            chunk = workers() if in_tiles else CHUNK  # images of any size
            rows = rows_by_chunk(model, paths, columns, partial(rows_of, into=into), chunk, wanted.quiet)
            yield from Rows(columns, rows, into / TABLE)
        if larger and not wanted.quiet:
            height, width, _ = model.shape
            say(
                f"note: {len(larger):,} of {len(paths):,} images are {LARGER} times as large as what the model sees or more "
                f"(first: {larger[0]}); they were reduced to {height}x{width}, and their masks enlarged. If the model learned "
                "from images in their own sizes, --tiles predicts large ones without reducing them"
            )

    return Rows(columns, parts(), None)


def overlay_of(mask: Path) -> Path:
    """The file of a mask on its image, beside the mask's own."""
    return mask.with_stem(f"{mask.stem}-overlay")


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


def _write(path: AnyFile, file: Path, mask: np.ndarray, model: Segments) -> np.ndarray:
    """Write a mask and its overlay in the size of the image's file. Returns the mask in that size."""
    pixels = pixels_to_show(path, model.reading, model.shape[2])
    height, width = pixels.shape[:2]
    full = resize(mask[..., None], (height, width), "nearest")[..., 0]
    write_png(file, full, palette(len(model.classes)))
    write_png(overlay_of(file), overlay(pixels, full, len(model.classes)))
    return full
