"""What a source was understood to be: counts, sizes, values and what was left out; and some of its images on one sheet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field

from petriscope.core.drawing import fit_within, overlay, shown, write_png
from petriscope.core.files import readable
from petriscope.core.progress import progress
from petriscope.core.results import Result
from petriscope.data.imageset import CHUNK, Dataset, ImageSet
from petriscope.data.omissions import Omission, omissions_in

SHEET = 6  # images on a contact sheet
ACROSS = 3
SIDE = 224  # pixels of the longer side of an image on a sheet
GAP, LINE = 10, 18


class SplitSummary(Result):
    """A split of a source.

    Args:
        n: images.
        per_class: how much of each class there is: images, or labeled pixels, see `DataSummary.counted`.
        groups: how many groups of images that belong together there are; None: the source has none.
        unlabeled: pixels of masks without a class; None: there are no masks.
    """

    n: int
    per_class: dict[str, int]
    groups: int | None = None
    unlabeled: int | None = None


class FileSizes(Result):
    """The sizes in pixels, (height, width), that images had in their files."""

    different: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    most_common: tuple[int, int]


class Values(Result):
    """The values of the pixels of all splits, per channel."""

    low: list[int]
    high: list[int]
    mean: list[float]


class LeftOutKind(Result):
    """What was left out for one reason: how many, and the name of the first."""

    reason: str
    count: int
    first: str


class DataSummary(Result):
    """What a source was understood to be.

    Args:
        counted: what ``per_class`` counts: images or pixels.
        size: (height, width) of all images, as a model gets them.
        file_sizes: those in the files, by area; None: not known.
        channels: of an image; ``channel_names`` has a name for each.
        bits: of a value, as a model gets it.
        columns: what else is known of each image, by which results can be broken down: how many different values each has.
        drawn: splits that were drawn at random; the others are the source's.
    """

    source: str
    fingerprint: str
    task: str
    classes: list[str]
    counted: str
    size: tuple[int, int]
    file_sizes: FileSizes | None = None
    channels: int
    channel_names: list[str]
    bits: int
    values: Values
    field_of_view: tuple[float, float] | None = None
    splits: dict[str, SplitSummary]
    drawn: list[str]
    columns: dict[str, int] = Field(default_factory=dict)
    left_out: list[LeftOutKind]
    warnings: list[str]


def summarize(dataset: Dataset) -> DataSummary:
    """What is in a data set. All pixels are read once."""
    parts = dataset.splits
    height, width, channels = dataset.shape
    columns = dict.fromkeys(name for part in parts.values() for name in part.columns)
    dropped = [each for each in dataset.audited if each.decision == "drop"]
    left_out = omissions_in(dataset.warnings)
    if dropped:
        left_out.append(Omission("images that the decisions of the audit drop", len(dropped), dropped[0].id))
    return DataSummary(
        source=dataset.source,
        fingerprint=dataset.fingerprint,
        task=dataset.task.name,
        classes=list(dataset.classes),
        counted=dataset.task.counted,
        size=(height, width),
        file_sizes=_file_sizes(list(parts.values())),
        channels=channels,
        channel_names=list(dataset.channels),
        bits=dataset.bits,
        values=_values(list(parts.values())),
        field_of_view=dataset.field_of_view,
        splits={name: _split(part) for name, part in parts.items()},
        drawn=[name for name in parts if name in dataset.drawn],
        columns={
            name: len({value for part in parts.values() for value in part.columns.get(name, ())}) for name in columns
        },
        # Names of files may be no text in UTF-8.
        left_out=[LeftOutKind(reason=each.reason, count=each.count, first=readable(each.first)) for each in left_out],
        warnings=[readable(warning) for warning in dataset.warnings],
    )


def _split(part: ImageSet) -> SplitSummary:
    height, width, _ = part.shape
    return SplitSummary(
        n=len(part),
        per_class=dict(zip(part.classes, part.counts.tolist(), strict=True)),
        groups=None if part.groups is None else len({*part.groups.tolist()}),
        unlabeled=len(part) * height * width - int(part.counts.sum()) if part.task.dense else None,
    )


def _file_sizes(parts: list[ImageSet]) -> FileSizes | None:
    known = [part.sizes for part in parts if part.sizes is not None]
    sizes = np.concatenate([np.empty((0, 2), dtype=np.int64), *known])
    sizes, counts = np.unique(sizes[(sizes > 0).all(1)], axis=0, return_counts=True)
    if not len(sizes):
        return None
    order = np.argsort(sizes.prod(1), kind="stable")

    def at(row: int) -> tuple[int, int]:
        return int(sizes[row, 0]), int(sizes[row, 1])

    return FileSizes(
        different=len(sizes), smallest=at(order[0]), largest=at(order[-1]), most_common=at(int(counts.argmax()))
    )


def _values(parts: list[ImageSet]) -> Values:
    low, high, total, pixels = [], [], 0.0, 0
    with progress("looking at pixels", sum(map(len, parts))) as bar:
        for part in parts:
            for start in range(0, len(part), CHUNK):
                block = part.take(np.arange(start, min(start + CHUNK, len(part))))
                low.append(block.min((0, 1, 2)))
                high.append(block.max((0, 1, 2)))
                total = total + block.sum((0, 1, 2), dtype=np.float64)
                pixels += block[..., 0].size
                bar.advance(len(block))
    return Values(
        low=np.min(low, axis=0).tolist(),
        high=np.max(high, axis=0).tolist(),
        mean=[round(float(each), 3) for each in np.atleast_1d(total / pixels)],
    )


def write_contact_sheet(dataset: Dataset, path: Path) -> list[str]:
    """Write six images with their names and classes to a PNG file: the first of each class, in turn, of the first split. Masks
    are drawn over the right halves of their images.

    Returns:
        the ids of the images, in the order of rows.

    Raises:
        PetriscopeError: the file cannot be written.
    """
    part = next(iter(dataset.splits.values()))
    chosen = _in_turn(part.strata, SHEET)
    height, width = _shown_size(*part.shape[:2])
    below = GAP + LINE * (1 if part.task.dense else 2)  # room for words
    down = -(-len(chosen) // ACROSS)
    images = shown(part.take(chosen), part.channels)
    amounts = part.task.amounts(part.targets[chosen], len(part.classes))
    sheet = Image.new("RGB", (ACROSS * (width + GAP) + GAP, down * (height + below) + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for place, index in enumerate(chosen):
        left, top = GAP + place % ACROSS * (width + GAP), GAP + place // ACROSS * (height + below)
        picture = Image.fromarray(_as_color(images[place], part, index))
        sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (left, top))
        there = np.flatnonzero(amounts[place] > 0).tolist()
        label = [] if part.task.dense else [", ".join(part.classes[each] for each in there) or "(none)"]
        for line, text in enumerate((*label, str(part.ids[index]))):
            pen.text((left, top + height + line * LINE), _fitting(text, width, font), "black", font)
    write_png(path, np.asarray(sheet))
    return [str(part.ids[index]) for index in chosen]


def _in_turn(strata: np.ndarray, count: int) -> list[int]:
    """The first images of each stratum, then the second, until there are so many."""
    rank = np.zeros(len(strata), dtype=np.int64)
    for each in np.unique(strata):
        rank[strata == each] = np.arange((strata == each).sum())
    return np.lexsort((strata, rank))[:count].tolist()


def _shown_size(height: int, width: int) -> tuple[int, int]:
    factor = max(1, SIDE // max(height, width))
    return fit_within(height * factor, width * factor, SIDE)


def _as_color(image: np.ndarray, part: ImageSet, index: int) -> np.ndarray:
    """An image, uint8 [H, W, 1 or 3], as uint8 [H, W, 3], its mask over the right half."""
    image = np.broadcast_to(image, (*part.shape[:2], 3))
    if not part.task.dense:
        return np.ascontiguousarray(image)
    painted = overlay(image, part.targets[index], len(part.classes))
    half = part.shape[1] // 2
    return np.concatenate([image[:, :half], painted[:, half:]], axis=1)


def _fitting(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The end of a text that is too long, since names differ there."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength("…" + text) > width:
        text = text[1:]
    return "…" + text
