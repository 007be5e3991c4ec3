"""Small sources of every kind, made in a folder of the test."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from petriscope.core.recipe import DataSection
from petriscope.data import Dataset, load_dataset

COUNTS = {"train": 12, "val": 4, "test": 4}
CLASSES = ("cat", "dog")


def load(source: Path | str, **options: Any) -> Dataset:
    return load_dataset(DataSection(source=str(source), **options))


def some_images(count: int, gray: bool = False, seed: int = 0, side: int = 8) -> np.ndarray:
    """Random uint8 [N, side, side + 1, C]: not square, so that height and width cannot be mixed up."""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side + 1, 1 if gray else 3), dtype=np.uint8)


def save_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path)


def make_npz(folder: Path, gray: bool = False, seed: int = 0, **changes: Any) -> Path:
    arrays: dict[str, Any] = {}
    for index, (split, count) in enumerate(COUNTS.items()):
        images = some_images(count, gray, seed + index)
        arrays[f"{split}_images"] = images[..., 0] if gray else images
        arrays[f"{split}_labels"] = (np.arange(count) % 2)[:, None].astype(np.uint8)
    arrays.update(changes)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "cells.npz", **{name: array for name, array in arrays.items() if array is not None})
    return folder / "cells.npz"


def make_folders(folder: Path, gray: bool = False, seed: int = 0, splits: bool = True) -> Path:
    for index, (split, count) in enumerate(COUNTS.items()):
        for number, pixels in enumerate(some_images(count, gray, seed + index)):
            place = folder / split if splits else folder
            save_image(place / CLASSES[number % 2] / f"{split}_{number:02d}.png", pixels)
    return folder


def make_unsplit(folder: Path, gray: bool = False, seed: int = 0) -> Path:
    return make_folders(folder, gray, seed, splits=False)


def make_cifar(folder: Path, gray: bool = False, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate([f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]):
        data = np.random.default_rng(seed + index).integers(0, 256, (4, 3072), dtype=np.uint8)
        batch = {b"data": data, b"labels": [0, 1, 0, 1], b"batch_label": b"x"}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"cat", b"dog"]}, protocol=2))
    return folder


def make_table(folder: Path, gray: bool = False, seed: int = 0, kind: str = "csv") -> Path:
    make_folders(folder, gray, seed)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    rows = [{"path": name, "label": name.split("/")[1], "split": name.split("/")[0]} for name in files]
    return write_table(folder / f"table.{kind}", rows)


def make_parquet(folder: Path, gray: bool = False, seed: int = 0) -> Path:
    return make_table(folder, gray, seed, "parquet")


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(rows)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    return path


def masks(count: int, seed: int = 0, side: int = 8, classes: int = 3) -> np.ndarray:
    """Random uint8 [N, side, side + 1], a few pixels unlabeled."""
    rng = np.random.default_rng([seed, 1])
    out = rng.integers(0, classes, (count, side, side + 1), dtype=np.uint8)
    out[rng.random(out.shape) < 0.1] = 255
    return out


def make_mask_npz(folder: Path, gray: bool = False, seed: int = 0, **changes: Any) -> Path:
    arrays = {f"{split}_masks": masks(count, seed + index) for index, (split, count) in enumerate(COUNTS.items())}
    return make_npz(folder, gray, seed, **{**{f"{split}_labels": None for split in COUNTS}, **arrays, **changes})


def make_mars(folder: Path, gray: bool = False, seed: int = 0, count: int = 600, **changes: Any) -> Path:
    """The layout of the Mars file; its images are gray always."""
    pairs = np.stack([some_images(count, True, seed)[..., 0], masks(count, seed, classes=5) % 255], axis=1)
    arrays = {"training_set": pairs, "training_names": np.array([f"crop{index}" for index in range(count)]), **changes}
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "mars.npz", **{name: array for name, array in arrays.items() if array is not None})
    return folder / "mars.npz"


def make_mask_folders(folder: Path, gray: bool = False, seed: int = 0, splits: bool = True) -> Path:
    for index, (split, count) in enumerate(COUNTS.items()):
        place = folder / split if splits else folder
        for number, pixels in enumerate(some_images(count, gray, seed + index)):
            mask = masks(count, seed + index)[number]
            save_image(place / "images" / f"{split}_{number:02d}.png", pixels)
            save_mask(place / "masks" / f"{split}_{number:02d}.png", mask, indexed=number % 2 == 0)
    return folder


def make_mask_pile(folder: Path, gray: bool = False, seed: int = 0) -> Path:
    return make_mask_folders(folder, gray, seed, splits=False)


def save_mask(path: Path, mask: np.ndarray, indexed: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask)
    if indexed:
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    image.save(path)


MASK_MAKERS: dict[str, Callable[..., Path]] = {
    "mask npz": make_mask_npz,
    "mars": make_mars,
    "mask folders": make_mask_folders,
    "mask pile": make_mask_pile,
}
MAKERS: dict[str, Callable[..., Path]] = {
    "npz": make_npz,
    "folders": make_folders,
    "pile": make_unsplit,
    "cifar": make_cifar,
    "csv": make_table,
    "parquet": make_parquet,
    **MASK_MAKERS,
}
