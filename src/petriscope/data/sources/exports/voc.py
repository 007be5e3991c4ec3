"""Pascal VOC's XML: one file per image, with boxes; splits are lists in ImageSets/Main."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from xml.etree.ElementTree import Element

from petriscope.data.sources.exports.annotations import NOT_AS_FORMAT, Drawn, Export, Fault, Labeled, numbers, size_of
from petriscope.data.sources.split_lists import list_files, split_lists
from petriscope.data.walk import Folder, stem_of

FLAGS = ("difficult", "truncated", "occluded")
SIDES = ("xmin", "ymin", "xmax", "ymax")
ROOT = "annotation"


def read_voc(roots: Mapping[str, Element], tree: Folder) -> Export:
    """
    Args:
        roots: the parsed files, by their ids.
        tree: the source, for its lists of splits.
    """
    out = Export("Pascal VOC", used=set(roots))
    from_zero = False
    for id, root in roots.items():
        image = _image(id, root)
        from_zero |= _read_objects(root, image, id, out)
        out.images.append(image)
    if from_zero:
        out.notes.append("the coordinates of the boxes count from 0, since some are 0; Pascal VOC's count from 1")
    else:
        for image in out.images:
            image.drawn = [_from_one(drawn) for drawn in image.drawn]
    _add_splits(out, tree)
    return out


def _image(id: str, root: Element) -> Labeled:
    near, _, name = id.rpartition("/")
    named = (root.findtext("filename") or "").strip()
    size = size_of(root.findtext("size/height"), root.findtext("size/width"))
    return Labeled(tuple(each for each in (named, stem_of(name)) if each), near, id, size)


def _read_objects(root: Element, image: Labeled, id: str, out: Export) -> bool:
    """Add the objects of an image; return whether a coordinate is 0."""
    from_zero = False
    for number, entry in enumerate(root.findall("object")):
        where = f"{id}, object {number}"
        try:
            label = out.class_named(entry.findtext("name"))
            place = entry.find("bndbox")
            if place is None:
                raise Fault(NOT_AS_FORMAT, "it has no bndbox")
            left, top, right, bottom = numbers([(place.findtext(side) or "").strip() for side in SIDES], 4)
        except Fault as fault:
            out.fault(fault, where)
            continue
        from_zero |= 0 in (left, top)
        flags = {name: value for name in FLAGS if (value := (entry.findtext(name) or "").strip()) in ("0", "1")}
        image.drawn.append(Drawn(label, number, where, (left, top, right, bottom), flags=flags))
    return from_zero


def _from_one(drawn: Drawn) -> Drawn:
    assert drawn.box is not None
    left, top, right, bottom = drawn.box
    return replace(drawn, box=(left - 1, top - 1, right, bottom))


def _add_splits(out: Export, tree: Folder) -> None:
    out.used |= list_files(tree)
    lists = split_lists(tree, "Main")
    if not lists:
        return
    kept = []
    for image in out.images:
        image.split = lists.get(stem_of(image.where.rpartition("/")[2]))
        if image.split is None:
            out.left_out.add("image{s} in no list of ImageSets/Main", image.where)
        else:
            kept.append(image)
    out.images = kept
