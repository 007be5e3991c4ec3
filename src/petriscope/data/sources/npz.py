"""npz files in MedMNIST's layout: ``{train,val,test}_images`` and ``_labels`` or ``_masks``, and optionally ``classes`` and
``_groups``."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from petriscope.core.channels import MOST
from petriscope.core.errors import DataError, near
from petriscope.core.recipe import DataSection
from petriscope.data import cache
from petriscope.data.imageset import ImageSet
from petriscope.data.omissions import LeftOutSentence, Omission
from petriscope.data.sources import label_sets, mars, medmnist
from petriscope.data.sources import labels as label_rules
from petriscope.data.sources.arrays import build_sets
from petriscope.data.sources.mask_values import build_mask_sets
from petriscope.data.sources.npz_file import NpzFile

KINDS = ("images", "labels", "masks", "groups")


def read(path: Path, section: DataSection, warnings: list[str]) -> dict[str, ImageSet]:
    """Read an npz file.

    Args:
        path: a file with the arrays ``*_images`` [N, H, W] or [N, H, W, 1 to 16] uint8, uint16, or floats in 0..1; ``*_labels``
            [N] or [N, 1] whole numbers from 0, or [N, K] 0 and 1 for any number of labels per image, or ``*_masks`` [N, H, W]
            uint8; optionally ``classes`` [K] strings, ``channels`` [C] strings and ``*_groups`` [N]; or with the arrays of
            `petriscope.data.sources.mars`.

    Raises:
        DataError: the file is damaged, holds pickled objects, lacks an array, or an array is of the wrong kind.
    """
    with NpzFile(path) as archive:
        if mars.is_mars(archive.names):
            return mars.read(archive, section, warnings)
        return read_arrays(archive, path, section, warnings)


class Header(Protocol):
    """The shape and type of an array."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def nbytes(self) -> int: ...


class Arrays(Protocol):
    """Arrays in a file, as `NpzFile` has them."""

    names: set[str]
    others: list[str]
    splits: tuple[str, ...]

    def inspect(self, name: str) -> Header: ...

    def load(self, name: str) -> np.ndarray: ...

    def map(self, name: str) -> np.ndarray: ...

    def texts(self, name: str) -> np.ndarray: ...


def read_arrays(archive: Arrays, path: Path, section: DataSection, warnings: list[str]) -> dict[str, ImageSet]:
    """Read the arrays of a file that has them in this layout."""
    names = archive.names
    splits = _splits(names, path, archive.splits)
    wanted = _wanted(splits, names)
    if unused := sorted(names - {*wanted}) + archive.others:
        text = f"{path} also has {_listed({*unused})}, which are not read"
        warnings.append(LeftOutSentence(text, [Omission("arrays that are not read", len(unused), unused[0])]))
    members = {name: archive.inspect(name) for name in wanted}
    for split in list(splits):
        count = members[f"{split}_images"].shape[:1]
        for kind in KINDS[1:]:
            other = members.get(f"{split}_{kind}")
            if other is not None and other.shape[:1] != count:
                raise DataError(
                    f"{path}: {split}_images has shape {list(members[f'{split}_images'].shape)} and {split}_{kind} "
                    f"{list(other.shape)}; their first dimensions must agree"
                )
        if count == (0,):
            name = f"{split}_images"
            warnings.append(LeftOutSentence(f"{name} is empty and was left out", [Omission("empty arrays", 1, name)]))
            splits.remove(split)
    if not splits:
        raise DataError(f"{path} has no images: its *_images arrays are empty")

    groups = _groups(archive, splits, path, warnings)
    size = sum(members[f"{split}_images"].nbytes for split in splits)
    mapped = cache.choose_mapped(size, section.memory, f"{path} unpacked")
    load = archive.map if mapped else archive.load
    pixels = {split: load(f"{split}_images") for split in splits}
    named = _names(archive, path, "classes", label_rules.MAX_CLASSES) if "classes" in names else None
    channels = _names(archive, path, "channels", MOST) if "channels" in names else ()
    if f"{splits[0]}_masks" in names:
        masks = {split: archive.load(f"{split}_masks") for split in splits}
        return build_mask_sets(pixels, masks, named, section, str(path), warnings, groups, channels)
    labels = {split: archive.load(f"{split}_labels") for split in splits}
    if label_sets.are_several(labels, section, str(path), warnings):
        flags = {split: label_sets.check_flags(each, f"{split}_labels of {path}") for split, each in labels.items()}
        amount = int(flags[splits[0]].shape[1])
        named = named or _known_names(flags, amount, section, path, warnings)
        classes = label_sets.name_flags(amount, named, section, str(path))
        has_names = named is not None or section.classes is not None
        return build_sets(pixels, flags, classes, section, str(path), warnings, groups, has_names, channels)
    numbers = {
        split: label_rules.check_numbers(each, f"{split}_labels of {path}", warnings) for split, each in labels.items()
    }
    amount = max(int(part.max()) + 1 for part in numbers.values())
    named = named or _known_names(numbers, amount, section, path, warnings)
    targets, classes = label_rules.name_numbers(numbers, named, section, str(path))
    has_names = named is not None or section.classes is not None
    return build_sets(pixels, targets, classes, section, str(path), warnings, groups, has_names, channels)


def _splits(names: set[str], path: Path, every: tuple[str, ...]) -> list[str]:
    known = {f"{split}_{kind}" for split in every for kind in KINDS}
    for name in sorted(names - known):
        if name.endswith(tuple(f"_{kind}" for kind in KINDS)):
            raise DataError(f"{path}: unknown array {name!r}; {near(name, known)}")
    splits = [split for split in every if f"{split}_images" in names]
    masks = any(f"{split}_masks" in names for split in every)
    if masks and any(f"{split}_labels" in names for split in every):
        raise DataError(f"{path} has labels and masks; keep one of them. Its arrays are {_listed(names)}")
    for split in every:
        for kind in ("images", "masks" if masks else "labels"):
            if f"{split}_{kind}" not in names and names & {f"{split}_{other}" for other in KINDS}:
                raise DataError(f"{path}: there is no {split}_{kind}; its arrays are {_listed(names)}")
    if not splits:
        then = "; call them train_images and train_labels, and val and test are drawn" if "images" in names else ""
        raise DataError(
            f"{path}: there is no train_images, val_images or test_images; its arrays are {_listed(names)}{then}"
        )
    return splits


def _wanted(splits: list[str], names: set[str]) -> list[str]:
    every = [f"{split}_{kind}" for split in splits for kind in KINDS] + ["classes", "channels"]
    return [name for name in every if name in names]


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)[:12]) or "none"


def _groups(archive: Arrays, splits: list[str], path: Path, warnings: list[str]) -> dict[str, np.ndarray] | None:
    """The group of each image, strings [N]; None unless all splits have groups."""
    given = [split for split in splits if f"{split}_groups" in archive.names]
    if len(given) < len(splits):
        if given:
            lacking = next(split for split in splits if split not in given)
            warnings.append(f"{path} has no {lacking}_groups, so {given[0]}_groups is not used")
        return None
    groups = {split: archive.texts(f"{split}_groups") for split in splits}
    for split, array in groups.items():
        if array.ndim != 1 and array.shape[1:] != (1,):
            raise DataError(
                f"{path}: {split}_groups has shape {list(array.shape)}; it must be [N], one group per image"
            )
    return {split: array.reshape(-1) for split, array in groups.items()}


def _names(archive: Arrays, path: Path, what: str, most: int) -> tuple[str, ...]:
    """The names of classes or channels."""
    found = archive.inspect(what)
    if len(found.shape) != 1 or found.dtype.kind not in "US" or found.shape[0] > most:
        raise DataError(f"{path}: {what} has type {found.dtype} and shape {list(found.shape)}; it must be [K] strings")
    words = archive.texts(what).tolist()
    if len(set(words)) != len(words) or not all(word.strip() for word in words):
        raise DataError(f"{path}: {what} has an empty name or a name twice: {', '.join(words)}")
    return tuple(words)


def _known_names(
    labels: dict[str, np.ndarray], count: int, section: DataSection, path: Path, warnings: list[str]
) -> tuple[str, ...] | None:
    """The class names of a set of MedMNIST: of the one that the file is called after, or that has as many images."""
    if section.classes is not None:
        return None
    found = medmnist.named_like(path.stem)
    if found is None:
        found = medmnist.counted_like({split: len(part) for split, part in labels.items()})
        if found is not None:
            warnings.append(f"{path} has as many images as {found}; its classes were named as there")
    names = medmnist.COLLECTIONS[found].classes if found else ()
    return names if len(names) == count else None
