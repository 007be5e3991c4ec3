"""Exports of labelling tools: boxes, which become images of objects, and outlines, which become masks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from petriscope.core.errors import DataError, PetriscopeError, RequestError
from petriscope.core.files import parsing
from petriscope.core.recipe import DataSection
from petriscope.data.imageset import ImageSet
from petriscope.data.sources.exports import coco, cvat, label_studio, labelme, voc, yolo
from petriscope.data.sources.exports.annotations import NOT_PARSED, Export, text_of
from petriscope.data.sources.exports.safe_xml import parse_xml
from petriscope.data.sources.exports.settle import settle
from petriscope.data.sources.folders import TOOLS
from petriscope.data.sources.listing import ImageFile
from petriscope.data.walk import Folder, suffix_of

SUFFIXES = (".json", ".xml", ".yaml", ".yml")  # of files that can be named as a source
FORMATS = ", ".join(TOOLS)
JSON_BYTES = 2**29
XML_BYTES = 2**28
LOOKED_AT = 20  # files of a kind, to tell whether they are an export


@dataclass(eq=False)
class Parsed:
    """The files of one format, by their ids.

    Args:
        format: its name.
        files: what is in each.
        damaged: why others cannot be parsed.
    """

    format: str
    files: dict[str, Any]
    damaged: dict[str, str] = field(default_factory=dict)


def find_export(tree: Folder, only: str | None = None) -> Export | None:
    """The export in a folder; None if there is none.

    Args:
        tree: the folder.
        only: the id of the one file of annotations that is asked for.

    Raises:
        DataError: ``only`` is damaged or of no known format; or there are exports of several formats.
    """
    found = [parsed for suffix in (".json", ".xml") if (parsed := _parse_all(tree, suffix, only)) is not None]
    declared = yolo.find_declared(tree, only) if only is None or only.endswith(yolo.SUFFIXES) else None
    kinds = [each.format for each in found] + ["YOLO"] * (declared is not None)
    if len(kinds) > 1:
        raise DataError(
            f"{tree.path} has annotations of {' and of '.join(kinds)}; keep one of them, or name its file as the source"
        )
    if declared is not None:
        return yolo.read_yolo(declared, tree)
    if not found:
        if only is not None:
            raise RequestError(f"{tree.path / only} is no export of a labelling tool that is read: {FORMATS}")
        return None
    out = _read(found[0], tree)
    for id, why in found[0].damaged.items():
        out.faults.add(NOT_PARSED, f"{id}: {why}")
    return out


def damaged_files(tree: Folder) -> list[str]:
    """A sentence on the first file in a folder that may be an export and cannot be parsed; or none."""
    for _, path in _files(tree, (".json", ".xml")):
        try:
            _parse(path)
        except PetriscopeError as error:
            return [str(error)]
        return []
    return []


def read_export(tree: Folder, export: Export, section: DataSection, warnings: list[str]) -> dict[str, ImageSet]:
    """Read an export: with ``section.crop``, an image per box, else a mask per image.

    Raises:
        DataError: only boxes are drawn, and ``section.crop`` does not say how they are cut out; or as `settle`.
        RequestError: ``section.task`` or ``section.mask_values`` do not fit.
    """
    from petriscope.data.sources.exports.crops import read_crops
    from petriscope.data.sources.exports.drawn_masks import read_masks

    source = str(tree.path)
    if section.mask_values is not None:
        raise RequestError(f"data.mask_values is for mask files, and {source} is an export of {export.tool}")
    if section.crop is not None and section.task == "segmentation":
        raise RequestError("data.crop cuts out objects, whose labels are classes; for masks, set data.crop to null")
    scenes = settle(export, tree, section, warnings)
    outlined = sum(drawn.outlined for scene in scenes for drawn in scene.drawn)
    every = sum(len(scene.drawn) for scene in scenes)
    if section.crop is not None:
        if outlined:
            warnings.append(_both(source, export.tool, "the boxes were cut out", "For masks, leave out data.crop"))
        return read_crops(scenes, section, source, warnings)
    remedy = "cut out the objects, one image per box, with --set data.crop.margin=0.1"
    if not outlined:
        if not every:
            raise DataError(
                f"{source} ({export.tool}) has nothing drawn in its images, and labels of whole images are not read from it. "
                "List the images in a table (CSV) with the columns path and label, and name that as the source; if its "
                "folders are classes, move the annotations out of it"
            )
        have = f"{every:,} boxes and no outlines"
        raise DataError(
            f"{source} ({export.tool}) has {have}, and a model needs a label or a mask per image; {remedy}. "
            "If its folders are classes, move the annotations out of it"
        )
    if section.task == "classification":
        raise DataError(f"{source} ({export.tool}) has objects in images, and data.task is classification; {remedy}")
    warnings.append(
        _both(source, export.tool, "the outlines became masks", "To cut out objects: --set data.crop.margin=0.1")
    )
    return read_masks(scenes, export.classes, section, source, warnings)


def list_images(tree: Folder, export: Export, section: DataSection) -> list[ImageFile]:
    """The files whose images have masks; none where each has several images, which are cut out."""
    if section.crop is not None:
        return []
    skip = section.model_copy(update={"unreadable": "skip"})
    return [ImageFile(scene.id, scene.path, scene.split, "") for scene in settle(export, tree, skip, [])]


def _both(source: str, tool: str, done: str, other: str) -> str:
    return f"{source} ({tool}) has outlines of objects; {done}. {other}"


def _read(parsed: Parsed, tree: Folder) -> Export:
    files = parsed.files
    if parsed.format == "COCO":
        return coco.read_coco(files)
    if parsed.format == "Pascal VOC":
        return voc.read_voc(files, tree)
    if parsed.format == "LabelMe":
        return labelme.read_labelme(files)
    if parsed.format == "CVAT":
        return cvat.read_cvat(files)
    return label_studio.read_label_studio(files)


def _parse_all(tree: Folder, suffix: str, only: str | None) -> Parsed | None:
    """The files of a suffix, if some of the first are of a known format.

    Raises:
        DataError: they are of several formats, or ``only`` is damaged.
    """
    by_format: dict[str, Parsed] = {}
    damaged: dict[str, str] = {}
    for place, (id, path) in enumerate(_files(tree, (suffix,))):
        if only not in (None, id):
            continue
        if place >= LOOKED_AT and only is None and not by_format:
            return None
        try:
            content = _parse(path)
        except PetriscopeError as error:
            if only is not None:
                raise
            damaged[id] = str(error).removeprefix(f"{path} ")
            continue
        if (format := _format_of(content)) is not None:
            by_format.setdefault(format, Parsed(format, {})).files[id] = content
    if len(by_format) > 1:
        one, other = list(by_format.values())[:2]
        raise DataError(
            f"{tree.path} has annotations of {one.format} ({next(iter(one.files))}) and of {other.format} "
            f"({next(iter(other.files))}); keep one of them, or name its file as the source"
        )
    for parsed in by_format.values():
        parsed.damaged = damaged
        return parsed
    return None


def _files(tree: Folder, suffixes: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    for folder in tree.all():
        for name in folder.others:
            if suffix_of(name) in suffixes:
                yield folder.id_of(name), folder.path / name


def _parse(path: Path) -> Any:
    if suffix_of(path.name) == ".xml":
        text = text_of(path, XML_BYTES, "annotations in XML")
        with parsing(path, kind=DataError):
            return parse_xml(text)
    text = text_of(path, JSON_BYTES, "annotations in JSON")
    with parsing(path, kind=DataError):
        return json.loads(text)  # numbers that are not finite are found where they are used


def _format_of(content: Any) -> str | None:
    if isinstance(content, list):
        return "Label Studio" if label_studio.is_label_studio(content) else None
    if isinstance(content, dict):
        return "COCO" if coco.is_coco(content) else "LabelMe" if labelme.is_labelme(content) else None
    tag = getattr(content, "tag", None)
    if tag == voc.ROOT and (content.find("object") is not None or content.find("filename") is not None):
        return "Pascal VOC"
    return "CVAT" if tag == cvat.ROOT and content.find("image") is not None else None
