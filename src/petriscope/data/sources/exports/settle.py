"""From what an export says to what can be used: files of images that are there, and what was drawn within them, in pixels."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from petriscope.core.errors import DataError
from petriscope.core.files import readable
from petriscope.core.recipe import DataSection
from petriscope.data import cache, index
from petriscope.data.decode import probe_file
from petriscope.data.omissions import LeftOut, LeftOutSentence, Omission
from petriscope.data.sources.exports.annotations import (
    NO_AREA,
    NOT_FINITE,
    OTHER_SIZE,
    OUTSIDE,
    TWICE,
    Box,
    Drawn,
    Export,
    Fault,
    Labeled,
)
from petriscope.data.sources.exports.finder import Finder
from petriscope.data.sources.listing import say_turned
from petriscope.data.sources.spelling import split_of_path
from petriscope.data.walk import Folder, count_others

FAR = 1e9  # pixels; coordinates beyond it are taken for errors
TOLERANCE = 1e-3  # pixels that a box may lie beyond the border by rounding


@dataclass(frozen=True, eq=False)
class Scene:
    """An image with what was drawn in it.

    Args:
        id: its path below the source.
        path: of its file.
        split: train, val, test or ``all``.
        size: (height, width) when upright; (0, 0): the header of the file cannot be read.
        gray: whether it is a gray image.
        drawn: in pixels. A box lies within the image; what has no box has an outline.
    """

    id: str
    path: Path
    split: str
    size: tuple[int, int]
    gray: bool
    drawn: tuple[Drawn, ...]

    def box_of(self, drawn: Drawn) -> Box:
        """The box, or the box around the outline, within the image."""
        return _within(_extent(drawn), self.size)


def settle(export: Export, tree: Folder, section: DataSection, warnings: list[str]) -> list[Scene]:
    """Find the images of an export and check what was drawn in them.

    A record that cannot be used stops all, or is left out and counted where ``section.unreadable`` is ``skip``. A box that lies
    partly outside of its image is cut at the border, which is said.

    Raises:
        DataError: a record cannot be used, an image is in two splits, or no image is left.
    """
    finder = Finder(tree)
    found: dict[str, Labeled] = {}
    for image in export.images:
        try:
            id = finder.find(image)
            if id in found:
                _refuse_two_splits(id, image, found[id], tree)
                raise Fault(TWICE, f"of {id}")
        except Fault as fault:
            export.fault(fault, image.where)
        else:
            found[id] = image
    _refuse_shares(found.values(), export, tree)
    ids = sorted(found)
    headers = _headers([finder.paths[id] for id in ids], str(tree.path))
    cut: Counter[str] = Counter()
    scenes = []
    turned = [readable(id) for id, (_, _, turned) in zip(ids, headers, strict=True) if turned and found[id].drawn]
    warnings += say_turned(turned, "; annotations are taken as drawn")
    for id, (size, gray, _) in zip(ids, headers, strict=True):
        image = found[id]
        if (drawn := _check(image, id, size, export, cut)) is not None:
            split = image.split or split_of_path(id) or "all"
            scenes.append(Scene(readable(id), finder.paths[id], split, size, gray, drawn))
    _say(export, finder, found, cut, tree, warnings)
    refuse(export.faults, f"{tree.path} ({export.tool})", section, warnings)
    if not scenes:
        raise DataError(f"{tree.path}: no image that the {export.tool} annotations name can be used")
    return _with_splits(scenes, export, warnings)


def _refuse_shares(images: Collection[Labeled], export: Export, tree: Folder) -> None:
    """
    Raises:
        DataError: all that is drawn lies within the first pixel: coordinates are shares of the sides.
    """
    drawn = [each for image in images if not image.shares for each in image.drawn if each.runs is None]
    if not drawn:
        return
    largest = max(side for each in drawn for side in _extent(each))
    if 0 < largest <= 1:
        raise DataError(
            f"{tree.path} ({export.tool}): all coordinates are from 0 to {largest:g}, as shares of the sides are, the "
            f"first in {drawn[0].where}; {export.tool} has pixels: multiply them by width and height"
        )


def refuse(faults: LeftOut, source: str, section: DataSection, warnings: list[str]) -> None:
    """Stop because of records that cannot be used; or, if ``section.unreadable`` is ``skip``, say that they are left out."""
    if not faults:
        return
    if section.unreadable == "stop":
        raise DataError(
            f"{source}: cannot use {faults.listed()}. Correct the annotations, or leave out what cannot be used with "
            "--set data.unreadable=skip"
        )
    warnings += faults.sentences(source)


def _headers(paths: Sequence[Path], source: str) -> list[tuple[tuple[int, int], bool, bool]]:
    """(height, width) of each image when upright, whether it is gray, and whether its EXIF tag turns it; from the index, for
    files that are unchanged."""

    def read(path: Path) -> str:
        header, _ = probe_file(path)
        return "0 0 0 0" if header is None else f"{header[0]} {header[1]} {int(header[2])} {int(header.turned)}"

    place = cache.cache_dir() / f"{cache.make_key('headers with turns', str(Path(source).absolute()))}.index"
    out = []
    for text in index.recall(place, paths, read).values:
        words = text.split()
        whole = len(words) == 4 and all(word.isdecimal() for word in words)  # empty for what is no regular file
        height, width, gray, turned = map(int, words) if whole else (0, 0, 0, 0)
        out.append(((height, width), bool(gray), bool(turned)))
    return out


def _check(
    image: Labeled, id: str, size: tuple[int, int], export: Export, cut: Counter[str]
) -> tuple[Drawn, ...] | None:
    """What was drawn in an image and can be used; None if the image cannot be."""
    if size == (0, 0):  # decoding says why
        return ()
    if image.size is not None and image.size != size:
        says = f"{image.size[0]} x {image.size[1]}"
        turned = ", turned" if image.size == size[::-1] else ""
        export.fault(
            Fault(OTHER_SIZE, f"{id} is {size[0]} x {size[1]} (height x width), not {says}{turned}"), image.where
        )
        return None
    out = []
    for drawn in image.drawn:
        try:
            drawn = _in_pixels(drawn, size) if image.shares else drawn
            _check_drawn(drawn, size, cut)
        except Fault as fault:
            export.fault(fault, f"{drawn.where}{'' if id in drawn.where else f' ({id})'}")
            continue
        out.append(drawn)
    return tuple(out)


def _in_pixels(drawn: Drawn, size: tuple[int, int]) -> Drawn:
    scale = np.array([size[1], size[0]], dtype=np.float64)
    box = None
    if drawn.box is not None:
        left, top, right, bottom = np.array(drawn.box) * np.tile(scale, 2)
        box = (float(left), float(top), float(right), float(bottom))
    return replace(drawn, box=box, rings=tuple(each * scale for each in drawn.rings))


def _check_drawn(drawn: Drawn, size: tuple[int, int], cut: Counter[str]) -> None:
    """
    Raises:
        Fault: it has no area, or none within the image.
    """
    height, width = size
    if drawn.runs is not None and not drawn.runs.by_rows and drawn.runs.shape != size:
        rows, columns = drawn.runs.shape
        raise Fault(OTHER_SIZE, f"its mask is {rows} x {columns} and the image {height} x {width}")
    left, top, right, bottom = extent = _extent(drawn)
    if max(map(abs, extent)) > FAR:
        raise Fault(NOT_FINITE, _spell(extent))
    if right <= left or bottom <= top:
        raise Fault(NO_AREA, _spell(extent))
    inner = _within(extent, size)
    if inner[2] <= inner[0] or inner[3] <= inner[1]:
        raise Fault(OUTSIDE, f"{_spell(extent)} of {height} x {width}")
    if max(abs(one - other) for one, other in zip(extent, inner, strict=True)) > TOLERANCE:
        cut[drawn.where] += 1


def _extent(drawn: Drawn) -> Box:
    if drawn.box is not None:
        return drawn.box
    if drawn.runs is not None:
        return _extent_of_runs(drawn)
    points = np.concatenate(drawn.rings)
    (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
    return left, top, right, bottom


def _extent_of_runs(drawn: Drawn) -> Box:
    runs = drawn.runs
    assert runs is not None
    across = runs.shape[1] if runs.by_rows else runs.shape[0]  # pixels per line
    ends = np.cumsum(runs.counts)
    first, last = ends[:-1:2], ends[1::2] - 1  # of the runs inside
    first, last = first[: len(last)][last >= first[: len(last)]], last[last >= first[: len(last)]]
    if not len(first):
        return 0.0, 0.0, 0.0, 0.0
    low, high = int(first.min() // across), int(last.max() // across) + 1
    several = first // across != last // across
    near = 0 if several.any() else int((first % across).min())
    far = across if several.any() else int((last % across).max()) + 1
    left, top, right, bottom = (near, low, far, high) if runs.by_rows else (low, near, high, far)
    x, y = runs.corner
    return float(left + x), float(top + y), float(right + x), float(bottom + y)


def _within(box: Box, size: tuple[int, int]) -> Box:
    height, width = size
    left, top, right, bottom = box
    return max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))


def _spell(box: Box) -> str:
    return ", ".join(f"{side} {value:g}" for side, value in zip(("left", "top", "right", "bottom"), box, strict=True))


def _refuse_two_splits(id: str, one: Labeled, other: Labeled, tree: Folder) -> None:
    if one.split != other.split:
        raise DataError(
            f"{tree.path}: {id} is both in {other.split} ({other.where}) and in {one.split} ({one.where}); keep one of them, or "
            "name one file as the source"
        )


def _say(
    export: Export, finder: Finder, found: Iterable[str], cut: Counter[str], tree: Folder, warnings: list[str]
) -> None:
    warnings += [f"{tree.path} ({export.tool}): {note}" for note in export.notes]
    count, first = finder.elsewhere
    if count:
        warnings.append(
            f"{count:,} image{'s are' if count > 1 else ' is'} named by a path outside of the source, the first: {first}; "
            "found by name in the source"
        )
    if cut:
        warnings.append(
            f"{sum(cut.values()):,} annotation{'s reach' if len(cut) > 1 else ' reaches'} beyond the border of the image and "
            f"{'are' if len(cut) > 1 else 'is'} cut there, the first: {next(iter(cut))}"
        )
    named = {*found}
    for id in finder.paths:
        if id not in named:
            export.left_out.add("image{s} that the annotations do not name", id)
    used: dict[str, set[str]] = defaultdict(set)
    for id in export.used:
        used[id.rpartition("/")[0]].add(id.rpartition("/")[2])
    for folder in tree.all():
        count_others(replace(folder, folders=[]), export.left_out, used[folder.id])
    warnings += export.left_out.sentences(tree.path)


def _with_splits(scenes: list[Scene], export: Export, warnings: list[str]) -> list[Scene]:
    """The images that are in a split, if any are."""
    inside = [scene for scene in scenes if scene.split != "all"]
    if not inside or len(inside) == len(scenes):
        return scenes
    first = next(scene for scene in scenes if scene.split == "all")
    left = len(scenes) - len(inside)
    text = (
        f"{left:,} image{'s are' if left > 1 else ' is'} in no split, and left out, since others are in one; the first: "
        f"{first.id}"
    )
    warnings.append(LeftOutSentence(text, [Omission("images in no split", left, first.id)]))
    return inside
