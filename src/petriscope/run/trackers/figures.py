"""Figures of a run for trackers: confusion matrices, and images of the gallery as sheets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from petriscope.core.drawing import write_png
from petriscope.run.folder import Run

SHEETS = (
    "augmented",
    "disturbed",
    "mistakes_",
    "reconstructions_",
)  # arrays of the gallery, or beginnings of their names
TILE = 64  # pixels to which the shorter side of smaller images is brought by whole factors
PER_ROW = 8
MOST_CLASSES = 30  # of a confusion matrix that can be read
CELL, INK = 44, (30, 30, 30)
SHADE = np.array((33, 102, 172))  # of a share of 1; 0 is white


def write_figures(run: Run, folder: Path) -> dict[str, Path]:
    """Write the figures into a folder as PNG files. Returns the files by name."""
    drawn = {f"confusion_{split}": picture for split, picture in _confusions(run).items()}
    for name, images in run.gallery.items():
        if name.startswith(SHEETS) and images.dtype == np.uint8 and images.ndim in (4, 5) and len(images):
            drawn[name] = sheet(images)
    files = {name: folder / f"{name}.png" for name in drawn}
    for name, path in files.items():
        write_png(path, drawn[name])
    return files


def sheet(images: np.ndarray) -> np.ndarray:
    """Images side by side, uint8 [H, W, 3].

    Args:
        images: uint8 [P, V, H, W, C], a row per P; or uint8 [M, H, W, C], `PER_ROW` to a row. C is 1 or 3.
    """
    if images.ndim == 4:
        missing = -len(images) % min(PER_ROW, len(images))
        blank = np.full((missing, *images.shape[1:]), 255, np.uint8)
        whole = np.concatenate([images, blank])
        images = whole.reshape(-1, min(PER_ROW, len(images)), *images.shape[1:])
    times = max(1, -(-TILE // min(images.shape[2:4])))
    tiles = images.repeat(times, axis=2).repeat(times, axis=3)
    tiles = np.pad(tiles, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    rows, columns, height, width, channels = tiles.shape
    laid = tiles.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)
    return np.ascontiguousarray(np.broadcast_to(laid, (*laid.shape[:2], 3)))


def _confusions(run: Run) -> dict[str, np.ndarray]:
    classes = run.environment.data.classes
    if len(classes) > MOST_CLASSES:
        return {}
    found = {split: each.confusion for split, each in run.results.evaluated.items()}
    return {split: confusion(np.array(counts), classes) for split, counts in found.items() if counts}


def confusion(counts: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """A confusion matrix, uint8 [H, W, 3]: true class by row, predicted class by column, shaded by the share of the row.

    Args:
        counts: int [K, K].
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(12)
    label = 8 + round(max(font.getlength(name) for name in classes))
    size = label + CELL * len(counts)
    page = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(page)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    for row, name in enumerate(classes):
        top = label + CELL * row
        pen.text((label - 4, top + CELL // 2), name, INK, font, anchor="rm")
        upright = Image.new("RGB", (label, CELL), "white")
        ImageDraw.Draw(upright).text((4, CELL // 2), name, INK, font, anchor="lm")
        page.paste(upright.rotate(90, expand=True), (top, 0))
        for column, share in enumerate(shares[row]):
            left = label + CELL * column
            color = tuple(int(value) for value in np.round(255 + share * (SHADE - 255)))
            pen.rectangle((left, top, left + CELL - 2, top + CELL - 2), color)
            ink = INK if share < 0.5 else (255, 255, 255)
            pen.text((left + CELL // 2, top + CELL // 2), f"{counts[row, column]}", ink, font, anchor="mm")
    return np.asarray(page)
