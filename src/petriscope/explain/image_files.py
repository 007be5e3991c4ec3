"""Explanations of image files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petriscope.core.drawing import enlarged_overlay, write_png
from petriscope.core.drawing import shown as seen
from petriscope.core.errors import RequestError, near
from petriscope.core.files import cut
from petriscope.core.names import place_of
from petriscope.core.progress import progress, say
from petriscope.core.recipe import Part
from petriscope.data.in_memory import AnyFile
from petriscope.data.tiles import cut as cut_tile
from petriscope.explain import chosen
from petriscope.explain.shown import Shown
from petriscope.inference.decoding import CHUNK, DecodedFile, decoded
from petriscope.inference.predictor import Predictor
from petriscope.inference.table import readable_row
from petriscope.tasks import in_room

if TYPE_CHECKING:
    import pandas as pd

MOST_ON_PAGE = 300
COLUMNS = ("image", "predicted", "confidence", "explained", "overlay", "error")


def explain_files(
    predictor: Predictor, paths: Sequence[AnyFile], into: Path, out: Path, method: str, of: str | None, quiet: bool
) -> tuple[pd.DataFrame, list[Shown], Part]:
    """Explain image files, and write an overlay of each into a folder; see `petriscope.api.explain`.

    Args:
        into: the folder; it is called ``out`` when all is written.
        method: a name in `petriscope.explain.EXPLAINERS`, or ``auto``.
        of: the class to explain; None: the predicted class of each image.

    Returns:
        a table with one row per image; the first `MOST_ON_PAGE` images with their maps; and the method with its options.

    Raises:
        RequestError: the class or method is unknown.
    """
    import pandas as pd

    label = None if of is None else place_of(of, predictor.classes)
    if of is not None and label is None:
        raise RequestError(f"this model has no class {of!r}; {near(of, predictor.classes)}")
    part, room = chosen(predictor, method), in_room(predictor.task, "explain")
    columns = (*COLUMNS, *room.COLUMNS)
    rows: list[dict[str, Any]] = []
    shown: list[Shown] = []
    with progress("explaining", len(paths)) as bar:
        for block, images in decoded(predictor, paths, predictor.task.batch_size(CHUNK, predictor.shape)):
            images = [_middle(image, predictor) for image in images]
            good = [image.pixels for image in images if not isinstance(image, str)]
            found = room.explain_images(predictor, good, label, part)
            for path, image in zip(block, images, strict=True):
                row: dict[str, Any] = dict.fromkeys(columns)
                row["image"] = str(path)
                if isinstance(image, str):
                    row["error"] = image
                else:
                    heat, mask, facts = next(found)
                    row |= facts
                    plain = seen(image.pixels, predictor.channels)
                    if heat is not None:
                        region = None if mask is None else mask == predictor.classes.index(row["explained"])
                        name = f"{len(rows) + 1:05d}-{cut(path.stem)}.png"
                        row["overlay"] = str(out / name)
                        write_png(into / name, enlarged_overlay(plain, heat, region))
                    if len(shown) < MOST_ON_PAGE:
                        shown.append(Shown(plain, heat, str(path), mask=mask, **facts))
                rows.append(readable_row(row))
                if not quiet:
                    bar.advance(1)
    if predictor.reading.overlap is not None and not quiet:
        say(f"note: explained is the tile of {'x'.join(map(str, predictor.shape[:2]))} in the middle of each image")
    return pd.DataFrame(rows, columns=list(columns)), shown, part


def _middle(image: DecodedFile | str, predictor: Predictor) -> DecodedFile | str:
    """The tile in the middle of an image that has its own size; any other image as it is."""
    if isinstance(image, str) or predictor.reading.overlap is None:
        return image
    height, width, _ = predictor.shape
    top, left = (max(have - want, 0) // 2 for have, want in zip(image.size, (height, width), strict=True))
    return replace(image, pixels=cut_tile(image.pixels, top, left, (height, width)))
