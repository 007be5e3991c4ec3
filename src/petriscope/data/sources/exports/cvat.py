"""CVAT's XML for images, version 1.1: all images in one file, with boxes, polygons, ellipses and masks."""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree.ElementTree import Element

import numpy as np

from petriscope.core.errors import shown
from petriscope.core.names import tidy
from petriscope.data.sources.exports.annotations import (
    NOT_AS_FORMAT,
    Box,
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
from petriscope.data.sources.exports.labelme import circle
from petriscope.data.sources.spelling import split_of, split_of_path

ROOT = "annotations"
WITHOUT_AREA = ("polyline", "points", "skeleton", "cuboid", "tag")
SIDES = ("xtl", "ytl", "xbr", "ybr")


def read_cvat(roots: Mapping[str, Element]) -> Export:
    """
    Args:
        roots: the parsed files, by their ids.
    """
    out = Export("CVAT", used=set(roots))
    names = [tidy(each.findtext("name") or "") for root in roots.values() for each in root.findall("meta//label")]
    out.classes = list(dict.fromkeys(filter(None, names))) or None
    for id, root in roots.items():
        for place, entry in enumerate(root.findall("image")):
            where = f"{id}, image {place}"
            if not (name := entry.get("name")):
                out.fault(Fault(NOT_AS_FORMAT, "it has no name"), where)
                continue
            split = split_of(entry.get("subset") or "") or split_of_path(name.replace("\\", "/")) or split_of_path(id)
            image = Labeled(
                (name,), id.rpartition("/")[0], where, size_of(entry.get("height"), entry.get("width")), split
            )
            _read_shapes(entry, image, out)
            out.images.append(image)
        if root.find("track") is not None:
            out.left_out.add("track{s} of videos", id)
    return out


def _read_shapes(entry: Element, image: Labeled, out: Export) -> None:
    for number, shape in enumerate(entry):
        where = f"{image.where} ({entry.get('name')}), object {number}"
        if shape.tag in WITHOUT_AREA:
            out.left_out.add("point{s}, lines and tags", where)
            continue
        try:
            image.drawn.append(_shape(shape, number, where, out))
        except Fault as fault:
            out.fault(fault, where)


def _shape(shape: Element, number: int, where: str, out: Export) -> Drawn:
    label = out.class_named(shape.get("label"))
    occluded = shape.get("occluded", "")
    flags = {"occluded": occluded} if occluded in ("0", "1") else {}
    rank = int(numbers([shape.get("z_order") or "0"])[0])
    box: Box | None = None
    rings: tuple[np.ndarray, ...] = ()
    runs = None
    if shape.tag == "box":
        left, top, right, bottom = numbers([shape.get(side) or "" for side in SIDES], 4)
        box = (left, top, right, bottom)
        if angle := numbers([shape.get("rotation") or "0"])[0]:
            rings = (turned(box, angle),)
    elif shape.tag == "polygon":
        rings = (ring(numbers((shape.get("points") or "").replace(";", ",").split(","))),)
    elif shape.tag == "ellipse":
        x, y, wide, high = numbers([shape.get(side) or "" for side in ("cx", "cy", "rx", "ry")], 4)
        outline = circle(x - wide, y - high, x + wide, y + high)
        rings = (_about((x, y), outline, numbers([shape.get("rotation") or "0"])[0]),)
    elif shape.tag == "mask":
        runs = _mask(shape)
    else:
        raise Fault(NOT_AS_FORMAT, f"it is a {shown(shape.tag)}, which is not read")
    return Drawn(label, number, where, None if rings else box, rings, runs, flags, rank)


def turned(box: Box, degrees: float) -> np.ndarray:
    """The corners of a box that is turned clockwise about its center, float64 [4, 2]."""
    left, top, right, bottom = box
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    return _about(((left + right) / 2, (top + bottom) / 2), corners, degrees)


def _about(center: tuple[float, float], points: np.ndarray, degrees: float) -> np.ndarray:
    """Points that are turned clockwise about a center, float64 [P, 2]."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return (points - center) @ np.array([[cos, sin], [-sin, cos]]) + center


def _mask(shape: Element) -> Runs:
    left, top, width, height = (
        int(value) for value in numbers([shape.get(side) or "" for side in ("left", "top", "width", "height")], 4)
    )
    lengths = [int(value) for value in numbers((shape.get("rle") or "").split(","))]
    return runs_of(lengths, height, width, by_rows=True, corner=(left, top))
