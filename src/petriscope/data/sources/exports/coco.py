"""COCO's JSON: images, annotations and categories by ids, in one file per split. https://cocodataset.org/#format-data"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from petriscope.core.errors import shown
from petriscope.core.names import tidy
from petriscope.data.sources.exports.annotations import (
    NOT_AS_FORMAT,
    ORPHAN,
    TWICE,
    UNDECLARED,
    Drawn,
    Export,
    Fault,
    Labeled,
    Runs,
    numbers,
    ring,
    runs_of,
    size_of,
)
from petriscope.data.sources.spelling import split_in, split_of_path
from petriscope.data.walk import stem_of

SECTIONS = ("images", "annotations", "categories")
OBJECTS = "instances"  # how the file of objects is called, beside those of keypoints and others of the same images
MOST_BYTES = 13  # of a number in a compressed mask: 64 bits in pieces of five


def is_coco(tree: Any) -> bool:
    return isinstance(tree, dict) and all(isinstance(tree.get(name), list) for name in SECTIONS)


def read_coco(trees: Mapping[str, Any]) -> Export:
    """
    Args:
        trees: the parsed files, by their ids.
    """
    out = Export("COCO", classes=[])
    chosen = {id: tree for id, tree in trees.items() if id.rpartition("/")[2].startswith(OBJECTS)} or trees
    for id in trees.keys() - chosen.keys():
        out.left_out.add(f"COCO file{{s}} beside those called {OBJECTS}", id)
    out.used |= trees.keys()
    for id, tree in chosen.items():
        _read_file(id, tree, out)
    return out


def _read_file(id: str, tree: Mapping[str, Any], out: Export) -> None:
    split = split_in(stem_of(id.rpartition("/")[2])) or split_of_path(id)
    names = _categories(id, tree["categories"], out)
    images: dict[Any, Labeled] = {}
    for place, record in enumerate(tree["images"]):
        where = f"{id}, image {place}"
        try:
            _add_image(record, where, id.rpartition("/")[0], split, images)
        except Fault as fault:
            out.fault(fault, where)
    counts = dict.fromkeys(images, 0)
    known: set[int | str] = set()
    for place, record in enumerate(tree["annotations"]):
        where = f"{id}, annotation {place}"
        try:
            _add_annotation(record, where, names, images, counts, known, out)
        except Fault as fault:
            out.fault(fault, where)
    out.images += images.values()
    _say_same_names(id, names, tree["annotations"], out)


def _say_same_names(id: str, names: Mapping[int | str, str], records: Sequence[Any], out: Export) -> None:
    """Say where two categories that occur have one name."""
    used = {record.get("category_id") for record in records if isinstance(record, dict)}
    homes: dict[str, list[int | str]] = {}
    for key, name in names.items():
        if key in used:
            homes.setdefault(name, []).append(key)
    for name, keys in homes.items():
        if len(keys) > 1:
            listed = " and ".join(map(str, keys))
            out.notes.append(f"{id}: the categories {listed} are both called {name}, and were read as one class")


def _categories(id: str, records: list[Any], out: Export) -> dict[int | str, str]:
    names: dict[int | str, str] = {}
    for place, record in enumerate(records):
        where = f"{id}, category {place}"
        try:
            key = _id(record, "id")
            if not isinstance(name := record.get("name"), str) or not tidy(name):
                raise Fault(NOT_AS_FORMAT, f"its name is {shown(name)}")
            if key in names:
                raise Fault(TWICE, shown(key))
        except Fault as fault:
            out.fault(fault, where)
            continue
        names[key] = tidy(name)
        assert out.classes is not None
        if names[key] not in out.classes:
            out.classes.append(names[key])
    return names


def _add_image(record: Any, where: str, near: str, split: str | None, images: dict[Any, Labeled]) -> None:
    key = _id(record, "id")
    if not isinstance(name := record.get("file_name"), str) or not name:
        raise Fault(NOT_AS_FORMAT, f"its file_name is {shown(name)}")
    if key in images:
        raise Fault(TWICE, shown(key))
    images[key] = Labeled((name,), near, where, size_of(record.get("height"), record.get("width")), split)


def _add_annotation(
    record: Any,
    where: str,
    names: Mapping[int | str, str],
    images: Mapping[Any, Labeled],
    counts: dict[Any, int],
    known: set[int | str],
    out: Export,
) -> None:
    if (image := images.get(key := _id(record, "image_id"))) is None:
        raise Fault(ORPHAN, f"image_id {shown(key)}")
    number = counts[key]
    counts[key] += 1
    if record.get("id") is not None:
        if (own := _id(record, "id")) in known:
            raise Fault(TWICE, shown(own))
        known.add(own)
    if (label := names.get(category := _id(record, "category_id"))) is None:
        raise Fault(UNDECLARED, f"category_id {shown(category)}")
    box = None
    if record.get("bbox"):
        left, top, width, height = numbers(record["bbox"], 4)
        box = (left, top, left + width, top + height)
    outline = record.get("segmentation")
    runs = _runs(outline) if isinstance(outline, dict) else None
    rings = tuple(ring(numbers(part)) for part in outline) if isinstance(outline, list) else ()
    if box is None and runs is None and not rings:
        raise Fault(NOT_AS_FORMAT, "it has neither bbox nor segmentation")
    crowd = record.get("iscrowd", 0)
    flags = {"iscrowd": str(int(crowd))} if crowd in (0, 1) else {}
    image.drawn.append(Drawn(label, number, where, box, rings, runs, flags))


def _id(record: Any, name: str) -> int | str:
    if not isinstance(record, dict):
        raise Fault(NOT_AS_FORMAT, shown(record))
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise Fault(NOT_AS_FORMAT, f"its {name} is {shown(value)}")
    return value


def _runs(outline: Mapping[str, Any]) -> Runs:
    """A mask in runs along columns, as numbers or as text.

    Raises:
        Fault: it is not whole.
    """
    counts = outline.get("counts")
    height, width = (int(side) for side in numbers(outline.get("size"), 2))
    try:
        lengths = _from_text(counts) if isinstance(counts, str) else [int(number) for number in numbers(counts)]
    except ValueError as error:
        raise Fault(NOT_AS_FORMAT, str(error)) from None
    return runs_of(lengths, height, width)


def _from_text(text: str) -> list[int]:
    """The lengths of runs from COCO's compressed text: pieces of five bits from the lowest on, one per character from "0" on,
    whose sixth bit says that more follow; from the third on, they are differences to the length before the last.

    Raises:
        ValueError: it is no such text.
    """
    out: list[int] = []
    value = shift = 0
    for code in text.encode():
        code -= 48
        if not 0 <= code < 64 or shift >= 5 * MOST_BYTES:
            raise ValueError("its runs are no text of COCO's")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            out.append(value + (out[-2] if len(out) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("the text of its runs ends too early")
    return out
