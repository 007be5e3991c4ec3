"""Outlines of objects: they become masks, one class per pixel."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from petriscope.core.errors import DataError
from petriscope.core.masks import BACKGROUND, IGNORE
from petriscope.core.progress import progress
from petriscope.core.recipe import DataSection
from petriscope.data import cache
from petriscope.data.decode import workers
from petriscope.data.decode_many import decode_files
from petriscope.data.imageset import ImageSet
from petriscope.data.sources.exports.annotations import Drawn
from petriscope.data.sources.exports.outlines import inside_rings, inside_runs
from petriscope.data.sources.exports.settle import Scene
from petriscope.data.sources.labels import sort_names
from petriscope.data.sources.listing import folder_column, groups_of, rows_by_split, sets_over
from petriscope.data.sources.mask_files import fitted
from petriscope.data.sources.mask_values import order_classes

MOST_CLASSES = 254
GROUND = 254  # pixels that nothing is drawn in, while an image is drawn
SPAN = 64  # masks in memory at a time


def read_masks(
    scenes: Sequence[Scene], declared: Sequence[str] | None, section: DataSection, source: str, warnings: list[str]
) -> dict[str, ImageSet]:
    """The images with masks of what is outlined in them.

    Classes are in the order in which the export declares them, or else in that of their names. Pixels that nothing is drawn in
    are of the class background, which is the first unless the export declares it; with ``data.ignore=background``, they are
    unlabeled. Objects are drawn in the order of the export, later ones over earlier ones. Pixels in the box of an object without
    an outline are unlabeled, unless another outline covers them.

    Raises:
        DataError: too many classes.
    """
    used = {drawn.label for scene in scenes for drawn in scene.drawn if drawn.outlined}
    names = [name for name in declared if name in used or name == BACKGROUND] if declared else [*sort_names(used)]
    if BACKGROUND not in names:
        names = [BACKGROUND, *names]
    if len(names) > MOST_CLASSES:
        raise DataError(f"{source} has {len(names):,} classes; masks hold at most {MOST_CLASSES}")
    if unused := [name for name in declared or () if name not in names]:
        warnings.append(f"{len(unused):,} declared classes have no outline and are left out, the first: {unused[0]}")
    alone = [drawn for scene in scenes for drawn in scene.drawn if not drawn.outlined]
    if alone:
        warnings.append(
            f"{len(alone):,} objects have a box and no outline, the first: {alone[0].where}; pixels in these boxes are unlabeled"
        )
    bare = [scene.id for scene in scenes if not scene.drawn and scene.size != (0, 0)]
    if bare:
        warnings.append(
            f"in {len(bare):,} image{'s' if len(bare) > 1 else ''} nothing is drawn, such as {bare[0]}: all of "
            f"{'their' if len(bare) > 1 else 'its'} pixels are {BACKGROUND}"
        )
    ids = [scene.id for scene in scenes]
    decoded = decode_files([scene.path for scene in scenes], ids, section, source)
    warnings += decoded.warnings
    height, width = decoded.pixels.shape[1:3]
    masks, over = _draw_all(scenes, names, (int(height), int(width)), decoded.padded)
    if over:
        warnings.append(
            f"{over:,} objects lie over objects of other classes that come before them; where they do, the later one counts"
        )
    rows = rows_by_split(decoded, [scene.split for scene in scenes])
    targets, classes = order_classes({split: masks[indices] for split, indices in rows.items()}, names, section, source)
    return sets_over(decoded, rows, targets, classes, ids, groups_of(section, ids), columns=folder_column(ids))


def _draw_all(
    scenes: Sequence[Scene], names: Sequence[str], size: tuple[int, int], own: bool
) -> tuple[np.ndarray, int]:
    """The masks of all images, uint8 [N, *size], and how many objects lie over others. A second call takes them from the
    cache."""
    number = {name: index for index, name in enumerate(names)}
    key = cache.make_key(
        "drawn masks", [_digest(scene) for scene in scenes], names, size, *(["own sizes"] if own else [])
    )
    about: dict[str, int] = {"over": 0}

    def blocks() -> Iterator[np.ndarray]:
        with ThreadPoolExecutor(workers()) as pool, progress("drawing masks", len(scenes)) as bar:
            for start in range(0, len(scenes), SPAN):
                drawn = list(pool.map(lambda scene: draw(scene, number, size, own), scenes[start : start + SPAN]))
                about["over"] += sum(over for _, over in drawn)
                bar.advance(len(drawn))
                yield np.stack([mask for mask, _ in drawn])

    def store() -> None:
        cache.store(key, (len(scenes), *size), np.dtype(np.uint8), blocks(), about)

    masks, noted = cache.fetch_or_store(key, False, store)
    return masks, int(noted["over"])


def draw(scene: Scene, number: dict[str, int], size: tuple[int, int], own: bool = False) -> tuple[np.ndarray, int]:
    """The mask of an image, uint8 [*size], and how many objects lie over objects of other classes.

    Args:
        number: of each class.
        size, own: the form of the mask, see `petriscope.data.sources.mask_files.fitted`.
    """
    height, width = scene.size
    if not height or not width:  # the image cannot be read
        return np.full(size, IGNORE, dtype=np.uint8), 0
    mask, over = np.full((height, width), GROUND, dtype=np.uint8), 0
    for drawn in scene.drawn:
        if not drawn.outlined:
            left, top, right, bottom = scene.box_of(drawn)
            mask[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))] = IGNORE
    for drawn in sorted(scene.drawn, key=lambda drawn: drawn.rank):
        if drawn.outlined:
            place, inside = _inside(drawn, height, width)
            part, value = mask[place], number[drawn.label]
            over += bool((inside & (part < GROUND) & (part != value)).any())
            part[inside] = value
    mask[mask == GROUND] = number[BACKGROUND]
    return fitted(mask, size, own), over


def _inside(drawn: Drawn, height: int, width: int) -> tuple[tuple[slice, slice], np.ndarray]:
    if drawn.runs is not None:
        return inside_runs(drawn.runs, height, width)
    return inside_rings(drawn.rings, height, width)


def _digest(scene: Scene) -> str:
    """A hash of what is drawn in an image."""
    out = hashlib.blake2b(repr((scene.size, len(scene.drawn))).encode(), digest_size=16)
    for drawn in scene.drawn:
        out.update(repr((drawn.label, drawn.rank, None if drawn.outlined else drawn.box, len(drawn.rings))).encode())
        for ring in drawn.rings:
            out.update(np.ascontiguousarray(ring).tobytes())
        if drawn.runs is not None:
            out.update(repr((drawn.runs.shape, drawn.runs.by_rows, drawn.runs.corner)).encode())
            out.update(drawn.runs.counts.tobytes())
    return out.hexdigest()
