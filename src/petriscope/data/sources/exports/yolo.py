"""YOLO's text: one file per image, a line per object: a class number and a box, or the corners of a polygon, in shares of the
sides of the image. Classes and splits are in a data.yaml, or classes alone in a classes.txt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from petriscope.core.errors import DataError, PetriscopeError, shown
from petriscope.core.names import names_in_lines, tidy
from petriscope.core.yaml_text import InvalidYaml, read_yaml
from petriscope.data.sources.exports.annotations import (
    FEW_POINTS,
    NOT_AS_FORMAT,
    NOT_PARSED,
    UNDECLARED,
    Drawn,
    Export,
    Fault,
    Labeled,
    numbers,
    ring,
    text_of,
)
from petriscope.data.sources.labels import MAX_CLASSES
from petriscope.data.sources.spelling import split_of_path
from petriscope.data.walk import Folder, stem_of, suffix_of

LISTS = ("classes.txt", "obj.names")
SUFFIXES = (".yaml", ".yml")
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
MAX_BYTES = 2**24  # of a file
LOOKED_AT = 20  # label files, to tell whether they are some


@dataclass(frozen=True)
class Declared:
    """What a data.yaml, or a list of names, declares.

    Args:
        id: of the file.
        names: of the classes, by number.
        splits: what it says of each split: folders, or lists of images.
        more: numbers of keypoints that follow each box.
    """

    id: str
    names: dict[int, str]
    splits: dict[str, list[str]] = field(default_factory=dict)
    more: int = 0


def find_declared(tree: Folder, only: str | None = None) -> Declared | None:
    """The declaration of classes of a source, if it has label files of YOLO's too.

    Args:
        only: the id of the one file that is asked for.

    Raises:
        DataError: ``only`` declares no classes; or there are several declarations that differ.
    """
    found: list[Declared] = []
    if only is None and not _has_labels(tree):
        return None
    for folder in tree.all():
        for name in folder.others:
            if only not in (None, id := folder.id_of(name)):
                continue
            if suffix_of(name) in SUFFIXES and (declared := _from_yaml(folder, name, strict=only is not None)):
                found.append(declared)
            elif name in LISTS:
                text = text_of(folder.path / name, MAX_BYTES, "a list of class names")
                found.append(Declared(id, dict(enumerate(names_in_lines(text, id)))))
    found = [each for each in found if each.splits] or found
    found = [each for each in found if each.names]
    if not found:
        return None
    if any(each.names != found[0].names for each in found):
        raise DataError(
            f"{tree.path} has {found[0].id} and {found[1].id}, which name different classes; keep one of them, or name the "
            "data.yaml as the source"
        )
    return max(found, key=lambda each: each.more)  # a list of names says nothing of keypoints


def read_yolo(declared: Declared, tree: Folder) -> Export:
    order = sorted(declared.names)
    out = Export("YOLO", classes=[declared.names[number] for number in order], used={declared.id})
    if len({*(out.classes or ())}) < len(order):
        raise DataError(f"{tree.path / declared.id} has a class name twice; each class needs its own")
    texts = {
        folder.id_of(name): folder.path / name
        for folder in tree.all()
        for name in folder.others
        if suffix_of(name) == ".txt"
    }
    out.used |= {id for id in [*texts, declared.id] if id.rpartition("/")[2] in LISTS}
    splits = _splits(declared, tree)
    without = 0
    for folder in tree.all():
        for name in folder.images:
            id = folder.id_of(name)
            split = splits.get(id)
            if declared.splits and split is None:
                out.left_out.add(f"image{{s}} in no split of {declared.id}", id)
                continue
            image = Labeled((name,), folder.id, id, split=split or split_of_path(id), shares=True)
            labels = next((place for place in _label_files(folder.id, name) if place in texts), None)
            if labels is None:
                without += 1
            else:
                out.used.add(labels)
                _read_lines(labels, texts[labels], declared, image, out)
            out.images.append(image)
    if declared.more:
        out.notes.append(f"{declared.id} declares keypoints (kpt_shape), which are not read; the boxes before them are")
    if without:
        out.notes.append(
            f"{without:,} image{'s have' if without > 1 else ' has'} no file of labels: nothing is in them"
        )
    return out


def _from_yaml(folder: Folder, name: str, strict: bool) -> Declared | None:
    path = folder.path / name
    try:
        tree = read_yaml(text_of(path, MAX_BYTES, "a data.yaml of YOLO"))
    except (InvalidYaml, PetriscopeError) as error:
        if strict:
            raise DataError(f"{path} cannot be read as YAML: {error}") from None
        return None
    names = tree.get("names") if isinstance(tree, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(_is_class(*each) for each in names.items()):
        if strict:
            raise DataError(f"{path} declares no classes: names must list them, or map their numbers to them")
        return None
    splits = {}
    for key, split in SPLITS.items():
        places = tree.get(key)
        places = [places] if isinstance(places, str) else places
        if isinstance(places, list) and places and all(isinstance(place, str) for place in places):
            splits[split] = places
    shape = tree.get("kpt_shape")
    keypoints = isinstance(shape, list) and len(shape) == 2 and all(type(each) is int and each > 0 for each in shape)
    more = shape[0] * shape[1] if keypoints else 0
    return Declared(folder.id_of(name), {int(number): tidy(str(each)) for number, each in names.items()}, splits, more)


def _is_class(number: Any, name: Any) -> bool:
    return type(number) is int and 0 <= number < MAX_CLASSES and isinstance(name, str | int) and bool(tidy(str(name)))


def _has_labels(tree: Folder) -> bool:
    """Whether there is a file of labels for an image."""
    texts = [(folder, name) for folder in tree.all() for name in folder.others if suffix_of(name) == ".txt"]
    stems = {stem_of(name) for folder in tree.all() for name in folder.images} if texts else set[str]()
    looked = 0
    for folder, name in texts:
        if name not in LISTS and looked < LOOKED_AT and stem_of(name) in stems:
            looked += 1
            try:
                lines = text_of(folder.path / name, MAX_BYTES, "a file of labels").split("\n")
                if len(words := lines[0].split()) >= 5 and words[0].isdigit() and numbers(words):
                    return True
            except (PetriscopeError, Fault):
                continue
    return False


def _label_files(folder: str, name: str) -> Iterator[str]:
    """Where the labels of an image may be: beside it, or in the folder labels in place of the folder images."""
    stem = stem_of(name)
    parts = folder.split("/") if folder else []
    for place in reversed(range(len(parts))):
        if parts[place] == "images":
            yield "/".join([*parts[:place], "labels", *parts[place + 1 :], f"{stem}.txt"])
    yield "/".join([*parts, f"{stem}.txt"])
    yield "/".join([*parts, "labels", f"{stem}.txt"])
    yield "/".join([*parts[:-1], "labels", f"{stem}.txt"])


def _splits(declared: Declared, tree: Folder) -> dict[str, str]:
    """The split of each image that is in one.

    Raises:
        DataError: a folder or a list is not there, or an image is in two splits.
    """
    folders = {folder.id: folder for folder in tree.all()}
    images = {folder.id_of(name) for folder in tree.all() for name in folder.images}
    lists = {folder.id_of(name): folder.path / name for folder in tree.all() for name in folder.others}
    out: dict[str, str] = {}
    for split, places in declared.splits.items():
        for place in places:
            if (id := _ending(place, folders)) is not None:
                ids = [inner.id_of(name) for inner in folders[id].all() for name in inner.images]
            elif (id := _ending(place, lists)) is not None:
                lines = text_of(lists[id], MAX_BYTES, "a list of images").splitlines()
                ids = [found for line in lines if line.strip() and (found := _ending(line.strip(), images)) is not None]
            elif split == "test":
                continue  # often declared for sets whose test images are not given out
            else:
                raise DataError(
                    f"{tree.path / declared.id} has {split}: {shown(place)}, and there is no such folder or list"
                )
            for each in ids:
                if out.setdefault(each, split) != split:
                    raise DataError(f"{tree.path / declared.id}: {each} is both in {out[each]} and in {split}")
    return out


def _ending(place: str, known: Mapping[str, Any] | set[str]) -> str | None:
    """What is known by the end of a path, which may be that of another machine; the longest end that is known."""
    parts = [part for part in PurePosixPath(place.replace("\\", "/")).parts if part not in ("/", ".", "..")]
    return next((id for start in range(len(parts)) if (id := "/".join(parts[start:])) in known), None)


def _read_lines(id: str, path: Any, declared: Declared, image: Labeled, out: Export) -> None:
    try:
        lines = text_of(path, MAX_BYTES, "a file of labels").splitlines()
    except PetriscopeError as error:
        out.fault(Fault(NOT_PARSED, str(error)), id)
        return
    for number, line in enumerate(line for line in lines if line.strip()):
        where = f"{id}, object {number}"
        try:
            image.drawn.append(_read_line(line, number, where, declared))
        except Fault as fault:
            out.fault(fault, where)


def _read_line(line: str, number: int, where: str, declared: Declared) -> Drawn:
    first, *rest = line.split()
    if not first.isascii() or not first.isdigit() or len(first) > 9:
        raise Fault(NOT_AS_FORMAT, f"the class is {shown(first)}, no number")
    if (label := declared.names.get(int(first))) is None:
        raise Fault(UNDECLARED, first)
    values = numbers(rest)
    if declared.more:
        if len(values) != 4 + declared.more:
            raise Fault(NOT_AS_FORMAT, f"{len(values)} numbers, not 4 of a box and {declared.more} of keypoints")
        values = values[:4]
    if len(values) < 4:
        raise Fault(FEW_POINTS, shown(line))
    if len(values) == 4:
        x, y, width, height = values
        return Drawn(label, number, where, (x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    if len(values) == 5:
        raise Fault(NOT_AS_FORMAT, "it has a sixth number, as predictions have their confidence")
    return Drawn(label, number, where, rings=(np.asarray(ring(values)),))
