"""Objects in boxes: each becomes an image of its own, cut from the image that it was drawn in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from petriscope.core.errors import DataError
from petriscope.core.recipe import CropSection, DataSection
from petriscope.data.decode import MAX_PIXELS
from petriscope.data.decode_crops import decode_crops
from petriscope.data.imageset import ImageSet
from petriscope.data.sources.exports.annotations import Box
from petriscope.data.sources.exports.settle import Scene
from petriscope.data.sources.labels import index_names
from petriscope.data.sources.listing import as_column, groups_of, rows_by_split, sets_over


def read_crops(scenes: Sequence[Scene], section: DataSection, source: str, warnings: list[str]) -> dict[str, ImageSet]:
    """One image per object, with its class as label.

    The id is that of the image it is cut from and the place of the object among all that is drawn there, ``a.png#3``. Objects of
    one image are one group, unless ``section.group`` is a pattern for the paths of the images. What the tool says of each, such
    as whether it is occluded, becomes a column.

    Raises:
        DataError: there is no object, or a crop is too large.
    """
    crop = section.crop or CropSection()
    bare = [scene.id for scene in scenes if not scene.drawn and scene.size != (0, 0)]
    if bare:
        warnings.append(f"in {len(bare):,} image{'s' if len(bare) > 1 else ''} nothing is drawn, such as {bare[0]}")
        scenes = [scene for scene in scenes if scene.drawn or scene.size == (0, 0)]
    every = [(scene, drawn) for scene in scenes for drawn in scene.drawn]
    if not every:
        raise DataError(f"{source}: nothing is drawn in its images that could be cut out")
    outlines = sum(drawn.box is None for _, drawn in every)
    if outlines:
        warnings.append(
            f"{outlines:,} of {len(every):,} objects have an outline and no box; the box around it was taken"
        )
    windows = [
        np.array([window(scene.box_of(drawn), crop) for drawn in scene.drawn], dtype=np.int64).reshape(-1, 4)
        for scene in scenes
    ]
    for (scene, drawn), (_, _, height, width) in zip(every, np.concatenate(windows).tolist(), strict=True):
        if height * width > MAX_PIXELS:
            raise DataError(
                f"{source}: the crop of {drawn.where} ({scene.id}) would have {height} x {width} pixels; lower data.crop.margin, "
                "or take --set data.crop.size=box"
            )
    _say_flags(every, warnings)
    gray = all(scene.gray for scene in scenes)
    paths, names = [scene.path for scene in scenes], [scene.id for scene in scenes]
    decoded = decode_crops(paths, names, windows, gray, section, source)
    warnings += decoded.warnings
    rows = rows_by_split(decoded, [scene.split for scene, _ in every])
    targets, classes = index_names(
        {split: [every[row][1].label for row in indices.tolist()] for split, indices in rows.items()}, section, source
    )
    ids = [f"{scene.id}#{drawn.number}" for scene, drawn in every]
    homes = [scene.id for scene, _ in every]
    groups = np.array(homes) if section.group is None else groups_of(section, homes)
    flags = sorted({flag for _, drawn in every for flag in drawn.flags})
    columns = {"image": as_column(homes)} | {
        flag: as_column(drawn.flags.get(flag, "") for _, drawn in every) for flag in flags
    }
    return sets_over(decoded, rows, targets, classes, ids, groups, columns=columns)


def window(box: Box, crop: CropSection) -> tuple[int, int, int, int]:
    """Top, left, height and width in whole pixels of what is cut out around a box; it may reach beyond the image."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    margin = crop.margin * max(width, height)
    if crop.size == "square":
        width = height = max(width, height)
    rows, columns = (max(1, _nearest(side + 2 * margin)) for side in (height, width))
    return _nearest((top + bottom - rows) / 2), _nearest((left + right - columns) / 2), rows, columns


def _nearest(value: float) -> int:
    return int(np.floor(round(value, 3) + 0.5))  # halves go up, also those that are only nearly halves


def _say_flags(every: Sequence[tuple[Scene, object]], warnings: list[str]) -> None:
    counts: Counter[str] = Counter()
    for _, drawn in every:
        counts.update(flag for flag, value in drawn.flags.items() if value == "1")  # type: ignore[attr-defined]
    if crowds := counts["iscrowd"]:
        warnings.append(
            f"{crowds:,} object{'s are' if crowds > 1 else ' is'} marked iscrowd: several objects in one box. They are kept; the "
            "column iscrowd tells them apart"
        )
