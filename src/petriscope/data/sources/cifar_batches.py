"""The ``cifar-10-batches-py`` folder.

CIFAR's batches are pickles. They are not unpickled: `petriscope.data.sources.plain_pickle` reads the plain values and arrays of
bytes that they are made of, and refuses everything else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from petriscope.core.errors import DataError
from petriscope.core.recipe import DataSection
from petriscope.data.imageset import ImageSet
from petriscope.data.sources.arrays import build_sets
from petriscope.data.sources.labels import check_numbers, name_numbers
from petriscope.data.sources.plain_pickle import PickleRefused, read_plain

FOLDER = "cifar-10-batches-py"
TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST = "test_batch"
META = "batches.meta"
MAX_BYTES = 64 * 2**20  # twice a real batch
SIDE = 32


def is_batches(path: Path) -> bool:
    """Whether a folder holds CIFAR's batches."""
    return any((path / name).is_file() for name in (*TRAIN, TEST))


def read(path: Path, section: DataSection, warnings: list[str]) -> dict[str, ImageSet]:
    """Read the batches: train [50000] and test [10000], RGB images of 32 x 32.

    Args:
        path: the folder; the training batches may be absent.

    Raises:
        DataError: a training batch is missing, or a file is not a batch.
    """
    have = [name for name in TRAIN if (path / name).is_file()]
    if have and (lost := [name for name in TRAIN if name not in have]):
        raise DataError(f"{path} lacks {', '.join(lost)}; unpack the archive again")
    pixels, numbers = {}, {}
    for split, files in (("train", have), ("test", [TEST] if (path / TEST).is_file() else [])):
        if files:
            batches = [_read_batch(path / name) for name in files]
            pixels[split] = np.concatenate([images for images, _ in batches])
            numbers[split] = np.concatenate([labels for _, labels in batches])
    names = _class_names(path)
    targets, classes = name_numbers(numbers, names, section, str(path))
    named = names is not None or section.classes is not None
    return build_sets(pixels, targets, classes, section, str(path), warnings, named=named)


def _read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, 32, 32, 3] and int64 [N]."""
    batch = load_plain(path)
    data, labels = batch.get("data"), batch.get("labels")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * SIDE * SIDE:
        raise DataError(f"{path}: its data are not uint8 [N, {3 * SIDE * SIDE}]; is this a batch of CIFAR-10?")
    if not isinstance(labels, list) or len(labels) != len(data) or not all(type(item) is int for item in labels):
        raise DataError(f"{path}: it does not have one whole number as label for each of its {len(data):,} images")
    images = data.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    numbers = np.array([max(min(item, 2**62), -(2**62)) for item in labels], dtype=np.int64)
    return np.ascontiguousarray(images), check_numbers(numbers, f"the labels of {path}")


def _class_names(path: Path) -> tuple[str, ...] | None:
    if not (path / META).is_file():
        return None
    names = load_plain(path / META).get("label_names")
    if not isinstance(names, list) or not names:
        raise DataError(f"{path / META} has no list of label_names")
    return tuple(name.decode("latin1") if isinstance(name, bytes) else str(name) for name in names)


def load_plain(path: Path) -> dict[str, Any]:
    """A dictionary of lists, numbers, text and arrays of uint8, from a pickle; see `petriscope.data.sources.plain_pickle`.

    Raises:
        DataError: the file is too large, damaged, or has anything else.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} is larger than {MAX_BYTES:,} bytes; is this a batch of CIFAR-10?")
        value = read_plain(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except PickleRefused as error:
        raise DataError(f"{path} is no batch of CIFAR-10: {error}") from None
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise DataError(f"{path} is damaged: {error}; unpack the archive again") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} holds a {type(value).__name__}, not a dictionary; is this a batch of CIFAR-10?")
    return {key.decode("latin1") if isinstance(key, bytes) else key: item for key, item in value.items()}
