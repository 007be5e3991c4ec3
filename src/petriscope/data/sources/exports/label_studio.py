"""Label Studio's JSON: a list of tasks, with rectangles and polygons in percent of the sides of the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from petriscope.core.errors import shown
from petriscope.data.sources.exports.annotations import (
    BRUSH,
    NOT_AS_FORMAT,
    Drawn,
    Export,
    Fault,
    Labeled,
    numbers,
    ring,
    size_of,
)
from petriscope.data.sources.exports.cvat import turned
from petriscope.data.sources.exports.finder import name_in_url
from petriscope.data.sources.exports.labelme import circle
from petriscope.data.sources.spelling import split_of_path

KINDS = ("rectanglelabels", "polygonlabels", "ellipselabels")


def is_label_studio(tree: Any) -> bool:
    return isinstance(tree, list) and any(_is_task(task) and isinstance(task.get("annotations"), list) for task in tree)


def read_label_studio(trees: Mapping[str, Any]) -> Export:
    """
    Args:
        trees: the parsed files, by their ids.
    """
    out = Export("Label Studio", used=set(trees))
    several = 0
    for id, tree in trees.items():
        for place, task in enumerate(tree):
            where = f"{id}, task {place}"
            if not _is_task(task):
                out.fault(Fault(NOT_AS_FORMAT, shown(task)), where)
                continue
            made = [each for each in _records(task.get("annotations")) if not each.get("was_cancelled")]
            if not made:
                out.left_out.add("task{s} without annotations", where)
                continue
            several += len(made) > 1
            chosen = next((each for each in made if each.get("ground_truth")), made[0])
            try:
                out.images.append(_image(id, task, chosen, where, out))
            except Fault as fault:
                out.fault(fault, where)
    if several:
        out.notes.append(
            f"{several:,} task{'s have' if several > 1 else ' has'} several annotations, of which the one marked as ground "
            "truth, or else the first, is read"
        )
    return out


def _is_task(task: Any) -> bool:
    return isinstance(task, dict) and isinstance(task.get("data"), dict)


def _records(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _image(id: str, task: Mapping[str, Any], chosen: Mapping[str, Any], where: str, out: Export) -> Labeled:
    results = _records(chosen.get("result"))
    asked = {str(each["to_name"]) for each in results if isinstance(each.get("to_name"), str)}
    data = task["data"]
    places = [data[name] for name in [*sorted(asked & data.keys()), "image", *data] if isinstance(data.get(name), str)]
    if not places:
        raise Fault(NOT_AS_FORMAT, "its data name no image")
    name = name_in_url(places[0])
    sizes = (size_of(each.get("original_height"), each.get("original_width")) for each in results)
    size = next((each for each in sizes if each is not None), None)
    near = id.rpartition("/")[0]
    image = Labeled((name,), near, where, size, split_of_path(name) or split_of_path(id), shares=True)
    number = 0
    for result in results:
        kind = result.get("type")
        if kind not in KINDS and kind != "brushlabels":
            out.left_out.add("result{s} that are no boxes or polygons", f"{where} ({shown(kind)})")
            continue
        at = f"{where} ({name}), result {number}"
        try:
            image.drawn.append(_drawn(result, str(kind), number, at, size, out))
        except Fault as fault:
            out.fault(fault, at)
        number += 1
    return image


def _drawn(
    result: Mapping[str, Any], kind: str, number: int, where: str, size: tuple[int, int] | None, out: Export
) -> Drawn:
    if kind == "brushlabels":
        raise Fault(BRUSH)
    value = result.get("value")
    labels = value.get(kind) if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(labels, list) or len(labels) != 1:
        raise Fault(NOT_AS_FORMAT, f"it has the labels {shown(labels)}, and must have one")
    label = out.class_named(labels[0])
    if kind == "polygonlabels":
        points = value.get("points")
        flat = [each for point in points for each in numbers(point, 2)] if isinstance(points, list) else []
        return Drawn(label, number, where, rings=(ring(flat) / 100,))
    angle = numbers([value.get("rotation") or 0])[0]
    if kind == "ellipselabels":
        x, y, wide, high = (
            each / 100 for each in numbers([value.get(key) for key in ("x", "y", "radiusX", "radiusY")], 4)
        )
        outline = circle(x - wide, y - high, x + wide, y + high)
        if angle:
            raise Fault(NOT_AS_FORMAT, "it is a turned ellipse, which is not read")
        return Drawn(label, number, where, rings=(outline,))
    x, y, width, height = (each / 100 for each in numbers([value.get(key) for key in ("x", "y", "width", "height")], 4))
    if not angle:
        return Drawn(label, number, where, (x, y, x + width, y + height))
    # It is turned about its upper left corner, in pixels: percents of the two sides are not of one length.
    if size is None:
        raise Fault(NOT_AS_FORMAT, "it is turned, and the size of its image is not said")
    scale = np.array([size[1], size[0]])
    corners = turned((0.0, 0.0, width * size[1], height * size[0]), angle)
    corners += np.array([x, y]) * scale - corners[0]
    return Drawn(label, number, where, rings=(corners / scale,))
