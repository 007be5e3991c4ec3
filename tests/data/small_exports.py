"""The same few images with the same boxes and polygons, as each labelling tool exports them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from small_sources import save_image

HEIGHT, WIDTH = 40, 64
SPLITS = ("train", "train", "train", "val", "test")
CLASSES = ("red cell", "platelet")  # as they are declared: not in the order of their names
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Object:
    """An object: its class, its box (left, top, right, bottom), and the corners of its outline, if it has one."""

    label: str
    box: Box
    ring: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Picture:
    """An image file, ``images/SPLIT/NAME``, or ``images/NAME`` if there are no splits."""

    name: str
    split: str | None
    objects: tuple[Object, ...]

    @property
    def id(self) -> str:
        return f"images/{self.split}/{self.name}" if self.split else f"images/{self.name}"


def octagon(box: Box) -> tuple[tuple[int, int], ...]:
    left, top, right, bottom = box
    cut = min(right - left, bottom - top) // 4
    return (
        (left + cut, top), (right - cut, top), (right, top + cut), (right, bottom - cut),
        (right - cut, bottom), (left + cut, bottom), (left, bottom - cut), (left, top + cut),
    )  # fmt: skip


def pictures(splits: bool = True, outlines: bool = False, seed: int = 0) -> list[Picture]:
    """Five images with three objects each; the last of each lies at the border. Sides are even, so that no rounding of shares of
    a side moves a crop."""
    out = []
    rng = np.random.default_rng(seed)
    for index, split in enumerate(SPLITS):
        left, top = (int(value) * 2 for value in rng.integers(2, 5, 2))
        boxes = ((left, top, left + 10, top + 16), (36, 8, 56, 20), (0, 24, 12, 40))
        objects = [
            Object(CLASSES[(index + place) % 2], box, octagon(box) if outlines else ())
            for place, box in enumerate(boxes)
        ]
        out.append(Picture(f"s{index}.png", split if splits else None, tuple(objects)))
    return out


def pixels(index: int, gray: bool = False, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, index]).integers(0, 256, (HEIGHT, WIDTH, 1 if gray else 3), dtype=np.uint8)


def save_pictures(folder: Path, found: list[Picture], gray: bool = False, seed: int = 0) -> None:
    for index, picture in enumerate(found):
        save_image(folder / picture.id, pixels(index, gray, seed))


def put_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def put_json(path: Path, tree: Any) -> None:
    put_text(path, json.dumps(tree))


def coco(found: list[Picture]) -> dict[str, Any]:
    tree: dict[str, Any] = {"images": [], "annotations": []}
    tree["categories"] = [{"id": 7 + index, "name": name} for index, name in enumerate(CLASSES)]
    for key, picture in enumerate(found, start=100):
        tree["images"].append({"id": key, "file_name": picture.name, "height": HEIGHT, "width": WIDTH})
        for each in picture.objects:
            left, top, right, bottom = each.box
            tree["annotations"].append(
                {
                    "id": len(tree["annotations"]) + 1,
                    "image_id": key,
                    "category_id": 7 + CLASSES.index(each.label),
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "segmentation": [[value for point in each.ring for value in point]] if each.ring else [],
                    "iscrowd": 0,
                }
            )
    return tree


def write_coco(folder: Path, found: list[Picture]) -> None:
    splits = {picture.split for picture in found}
    for split in splits:
        name = f"instances_{split}2017" if split else "instances"
        put_json(folder / f"annotations/{name}.json", coco([each for each in found if each.split == split]))


def write_voc(folder: Path, found: list[Picture]) -> None:
    for picture in found:
        put_text(folder / f"Annotations/{Path(picture.name).stem}.xml", voc(picture))
        if picture.split:
            path = folder / f"ImageSets/Main/{picture.split}.txt"
            put_text(path, (path.read_text() if path.exists() else "") + Path(picture.name).stem + "\n")


def voc(picture: Picture) -> str:
    objects = "".join(
        f"<object><name>{escape(each.label)}</name><pose>Left</pose><truncated>{int(each.box[0] == 0)}</truncated>"
        f"<difficult>0</difficult><bndbox><xmin>{each.box[0] + 1}</xmin><ymin>{each.box[1] + 1}</ymin>"
        f"<xmax>{each.box[2]}</xmax><ymax>{each.box[3]}</ymax></bndbox></object>"
        for each in picture.objects
    )
    return (
        f"<annotation><folder>x</folder><filename>{escape(picture.name)}</filename><size><width>{WIDTH}</width>"
        f"<height>{HEIGHT}</height><depth>3</depth></size>{objects}</annotation>"
    )


def write_yolo(folder: Path, found: list[Picture]) -> None:
    for picture in found:
        text = "".join(f"{CLASSES.index(each.label)} {' '.join(map(repr, shares(each)))}\n" for each in picture.objects)
        put_text(folder / picture.id.replace("images", "labels").replace(".png", ".txt"), text)
    if any(picture.split for picture in found):
        splits = "".join(f"{split}: ../images/{split}\n" for split in ("train", "val", "test"))
        put_text(folder / "data.yaml", f"{splits}nc: {len(CLASSES)}\nnames: {json.dumps(CLASSES)}\n")
    else:
        put_text(folder / "classes.txt", "\n".join(CLASSES) + "\n")


def shares(each: Object) -> list[float]:
    if each.ring:
        return [round(value, 6) for x, y in each.ring for value in (x / WIDTH, y / HEIGHT)]
    left, top, right, bottom = each.box
    box = ((left + right) / 2 / WIDTH, (top + bottom) / 2 / HEIGHT, (right - left) / WIDTH, (bottom - top) / HEIGHT)
    return [round(value, 6) for value in box]


def write_labelme(folder: Path, found: list[Picture]) -> None:
    for picture in found:
        put_json((folder / picture.id).with_suffix(".json"), labelme(picture))


def labelme(picture: Picture) -> dict[str, Any]:
    shapes = [
        {
            "label": each.label,
            "points": [list(point) for point in each.ring or (each.box[2:], each.box[:2])],
            "group_id": None,
            "shape_type": "polygon" if each.ring else "rectangle",
            "flags": {},
        }
        for each in picture.objects
    ]
    return {
        "version": "5.4.1",
        "flags": {},
        "shapes": shapes,
        "imagePath": picture.name,
        "imageData": None,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    }


def write_cvat(folder: Path, found: list[Picture]) -> None:
    put_text(folder / "annotations.xml", cvat(found))


def cvat(found: list[Picture]) -> str:
    images = []
    for index, picture in enumerate(found):
        shapes = []
        for each in picture.objects:
            start = f'label={quoteattr(each.label)} source="manual" occluded="{int(each.box[0] == 0)}" z_order="0"'
            if each.ring:
                points = ";".join(f"{x:.2f},{y:.2f}" for x, y in each.ring)
                shapes.append(f'<polygon {start} points="{points}"></polygon>')
            else:
                sides = " ".join(f'{n}="{v:.2f}"' for n, v in zip(("xtl", "ytl", "xbr", "ybr"), each.box, strict=True))
                shapes.append(f"<box {start} {sides}></box>")
        subset = f' subset="{picture.split.title()}"' if picture.split else ""
        images.append(
            f'<image id="{index}" name="{picture.name}"{subset} width="{WIDTH}" height="{HEIGHT}">{"".join(shapes)}</image>'
        )
    labels = "".join(f"<label><name>{name}</name><color>#fff</color></label>" for name in CLASSES)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta><task><labels>'
        f"{labels}</labels></task></meta>{''.join(images)}</annotations>"
    )


def write_label_studio(folder: Path, found: list[Picture]) -> None:
    for split in {picture.split for picture in found}:
        name = f"export_{split}.json" if split else "export.json"
        place = folder / (split or "") / name
        put_json(place, [label_studio(index, each) for index, each in enumerate(found) if each.split == split])


def label_studio(index: int, picture: Picture) -> dict[str, Any]:
    results = []
    for each in picture.objects:
        kind = "polygonlabels" if each.ring else "rectanglelabels"
        left, top, right, bottom = each.box
        value: dict[str, Any] = {kind: [each.label]}
        if each.ring:
            value["points"] = [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in each.ring]
        else:
            value |= {"x": 100 * left / WIDTH, "y": 100 * top / HEIGHT, "rotation": 0}
            value |= {"width": 100 * (right - left) / WIDTH, "height": 100 * (bottom - top) / HEIGHT}
        results.append(
            {"type": kind, "value": value, "original_width": WIDTH, "original_height": HEIGHT, "to_name": "image"}
        )
    return {
        "id": index,
        "data": {"image": f"/data/upload/1/{index:08x}-{picture.name}"},
        "annotations": [{"id": index, "was_cancelled": False, "result": results}],
    }


WRITERS: dict[str, Callable[[Path, list[Picture]], None]] = {
    "coco": write_coco,
    "voc": write_voc,
    "yolo": write_yolo,
    "labelme": write_labelme,
    "cvat": write_cvat,
    "label studio": write_label_studio,
}


def make_export(
    folder: Path, tool: str, splits: bool = True, outlines: bool = False, gray: bool = False
) -> list[Picture]:
    found = pictures(splits, outlines)
    save_pictures(folder, found, gray)
    WRITERS[tool](folder, found)
    return found
