"""LabelMe's JSON: one file per image, with polygons, rectangles and circles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from petriscope.core.errors import shown
from petriscope.data.sources.exports.annotations import (
    FEW_POINTS,
    NOT_AS_FORMAT,
    Box,
    Drawn,
    Export,
    Fault,
    Labeled,
    numbers,
    ring,
    size_of,
)
from petriscope.data.sources.spelling import split_of_path
from petriscope.data.walk import stem_of

CORNERS = 72  # of the polygon that stands for a circle
WITHOUT_AREA = ("point", "points", "line", "linestrip")


def is_labelme(tree: Any) -> bool:
    return isinstance(tree, dict) and isinstance(tree.get("shapes"), list) and "imagePath" in tree


def read_labelme(trees: Mapping[str, Any]) -> Export:
    """
    Args:
        trees: the parsed files, by their ids.
    """
    out = Export("LabelMe", used=set(trees))
    for id, tree in trees.items():
        near, _, name = id.rpartition("/")
        named = tree["imagePath"] if isinstance(tree["imagePath"], str) else ""
        size = size_of(tree.get("imageHeight"), tree.get("imageWidth"))
        names = tuple(each for each in (named, stem_of(name)) if each)
        image = Labeled(names, near, id, size, split_of_path(id))
        for number, shape in enumerate(tree["shapes"]):
            where = f"{id}, shape {number}"
            try:
                _add(shape, number, where, image, out)
            except Fault as fault:
                out.fault(fault, where)
        out.images.append(image)
    return out


def circle(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """The outline of an ellipse in a box, float64 [P, 2]."""
    angle = np.arange(CORNERS) * (2 * np.pi / CORNERS)
    x, y = (
        (left + right) / 2 + (right - left) / 2 * np.cos(angle),
        (top + bottom) / 2 + (bottom - top) / 2 * np.sin(angle),
    )
    return np.stack([x, y], axis=1)


def _add(shape: Any, number: int, where: str, image: Labeled, out: Export) -> None:
    if not isinstance(shape, dict) or not isinstance(shape.get("points"), list):
        raise Fault(NOT_AS_FORMAT, "it has no points")
    kind = shape.get("shape_type") or "polygon"
    if kind in WITHOUT_AREA:
        out.left_out.add("point{s} and lines", where)
        return
    label = out.class_named(shape.get("label"))
    points = [tuple(numbers(point, 2)) for point in shape["points"]]
    box: Box | None = None
    rings: tuple[np.ndarray, ...] = ()
    if kind == "polygon":
        rings = (ring([value for point in points for value in point]),)
    elif kind == "rectangle" and len(points) in (2, 4):
        xs, ys = zip(*points, strict=True)
        box = (min(xs), min(ys), max(xs), max(ys))
    elif kind == "circle" and len(points) == 2:
        (x, y), (edge_x, edge_y) = points
        radius = float(np.hypot(edge_x - x, edge_y - y))
        box = (x - radius, y - radius, x + radius, y + radius)
        rings = (circle(*box),)
    elif kind in ("rectangle", "circle"):
        raise Fault(FEW_POINTS, f"{len(points)} for a {kind}")
    else:
        raise Fault(NOT_AS_FORMAT, f"its shape_type is {shown(kind)}, which is not read")
    image.drawn.append(Drawn(label, number, where, box, rings))
