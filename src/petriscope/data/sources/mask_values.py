"""Convert stored masks to class indices per pixel, with unlabeled pixels marked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from petriscope.core.channels import Names
from petriscope.core.errors import DataError, RequestError, near
from petriscope.core.masks import BACKGROUND, IGNORE
from petriscope.core.recipe import DataSection
from petriscope.data.decode import resize
from petriscope.data.imageset import ImageSet
from petriscope.data.sources.arrays import convert
from petriscope.data.sources.labels import name_numbers

MOST_UNNAMED = 64  # classes that are read without names; masks of more values are rather no class numbers
MOST_BY_CHANCE = 5  # different numbers of classes, each without gaps from 1; class numbers rarely are so
LISTED = 16  # values that a message lists
GRAY = 0x010101  # times a gray value: its color
BINARY = (0, 255)
BINARY_NAMES = ("0", "255")


@dataclass(frozen=True)
class ValueTable:
    """Which stored value stands for which class.

    Args:
        values: the k-th is that of class k: a whole number, or a color as 0xRRGGBB.
        colored: whether they are colors.
        place: what gives them, for messages.
    """

    values: tuple[int, ...]
    colored: bool
    place: str

    @property
    def names(self) -> tuple[str, ...]:
        """The values as names of their classes."""
        return tuple(_spell(value, self.colored) for value in self.values)

    def classes_of(self, values: np.ndarray, unlabeled: np.ndarray, where: str) -> np.ndarray:
        """The class of each pixel, uint8 [...].

        Args:
            values: whole numbers [...], or colors as 0xRRGGBB.
            unlabeled: bool [...]; such pixels become `IGNORE` unless their value is in the table.
            where: their name in messages.

        Raises:
            DataError: a value is not in the table.
        """
        order = np.argsort(self.values)
        known = np.array(self.values, dtype=np.int64)[order]
        at = np.searchsorted(known, values).clip(max=len(known) - 1)
        hit = known[at] == values
        if len(strange := values[~hit & ~unlabeled]):
            kind = "color" if self.colored else "value"
            raise DataError(
                f"{where} has the {kind} {_spell(int(strange[0]), self.colored)}, which is not in {self.place}; "
                f"that has {', '.join(self.names[:LISTED])}. Add it, or correct the mask"
            )
        return np.where(hit, order[at], IGNORE).astype(np.uint8)


def given_table(section: DataSection) -> ValueTable | None:
    """The table that ``section.mask_values`` gives, if any."""
    given = section.mask_values
    if given is None:
        return None
    numbers = [value if isinstance(value, int) else value[0] << 16 | value[1] << 8 | value[2] for value in given]
    return ValueTable(tuple(numbers), not isinstance(given[0], int), "data.mask_values")


def have_names(names: Sequence[str] | None, table: ValueTable | None, section: DataSection) -> bool:
    """Whether the classes of masks have names, in the source or in the recipe."""
    return names is not None or table is not None or section.classes is not None


def refusal(values: Iterable[int], where: str, colored: bool = False) -> DataError:
    """The error for masks whose values are no class numbers, with what to do about it."""
    found = sorted({*values})
    kind = "color" if colored else "value"
    smooth = "Were they saved as JPEG, or resized smoothly? Save masks as PNG, and resize them to the nearest pixel"
    if len(found) > MOST_UNNAMED:
        ends = "" if colored else f" from {found[0]} to {found[-1]}"
        named = "" if colored else ", or name them in data.classes if they are classes from 0"
        return DataError(
            f"{where}: the masks have {len(found):,} {kind}s or more{ends}; a mask has one class number per pixel. {smooth}. If "
            f"the {kind}s stand for objects, save the numbers of their classes{named}"
        )
    listed = ", ".join(_spell(value, colored) for value in found)
    table = ",".join(f"[{value >> 16},{value >> 8 & 255},{value & 255}]" if colored else str(value) for value in found)
    return DataError(
        f"{where}: the masks have {len(found)} {kind}{'s' * (len(found) > 1)}: {listed}. A mask has one class number per "
        f"pixel, and class numbers count from 0 without gaps; if these are classes, list them in order: --set "
        f"data.mask_values=[{table}]"
        f"{'. ' + smooth if len(found) > LISTED else ''}"
    )


def check_numbers_used(sets: Mapping[str, ImageSet], section: DataSection) -> None:
    """Check that the values of masks without names can be class numbers: from 0, without gaps, and not too many.

    Args:
        sets: all splits of a source as it was read.

    Raises:
        DataError: they cannot.
    """
    first = next(iter(sets.values()))
    partial = not {"train", "all"} & sets.keys()  # val or test alone may lack classes
    if not first.task.dense or partial or first.named:
        return
    numbers = [int(name) for name in first.classes]
    if numbers == list(BINARY):
        return
    used = np.sum([part.counts for part in sets.values()], axis=0) > 0
    if not used.all() or len(numbers) > MOST_UNNAMED:
        unlabeled = any((part.targets == IGNORE).any() for part in sets.values())
        found = [number for number, there in zip(numbers, used, strict=True) if there]
        raise refusal([*found, *[IGNORE] * unlabeled], str(section.source))


def pack(colors: np.ndarray) -> np.ndarray:
    """Colors [..., 3] as 0xRRGGBB, int64 [...]."""
    colors = colors.astype(np.int64)
    return (colors[..., 0] << 16) | (colors[..., 1] << 8) | colors[..., 2]


def _spell(value: int, colored: bool) -> str:
    return f"#{value:06x}" if colored else str(value)


def build_mask_sets(
    pixels: dict[str, np.ndarray],
    masks: dict[str, np.ndarray],
    names: Sequence[str] | None,
    section: DataSection,
    source: str,
    warnings: list[str],
    groups: dict[str, np.ndarray] | None = None,
    channels: Names = (),
) -> dict[str, ImageSet]:
    """Make image sets from arrays of images and of masks. The ids of the images are ``split/index``.

    Args:
        pixels: split -> images, as `petriscope.data.sources.arrays.convert` takes them.
        masks: split -> stored masks, as `check_masks` takes them, of the images' height and width.
        names: the names of the classes; None if the source has only numbers.
        groups: split -> strings [N].
        channels: the names that the source gives its channels; empty: none.

    Raises:
        DataError: masks have another type, size or range.
    """
    table = given_table(section)
    checked = {split: check_masks(array, f"{split}_masks of {source}", table) for split, array in masks.items()}
    for split, array in checked.items():
        if array.shape != pixels[split].shape[:3]:
            raise DataError(
                f"{source}: the {split} masks have shape {list(array.shape)} and the images "
                f"{list(pixels[split].shape)}; a mask must have the height and width of its image"
            )
    targets, classes = name_values(checked, names, section, source, warnings, table)
    named = have_names(names, table, section)
    ready, channels = convert(pixels, section, source, warnings, channels)
    return {
        split: ImageSet(
            pixels=array,
            targets=resize_masks(targets[split], (array.shape[1], array.shape[2])),
            classes=classes,
            ids=np.array([f"{split}/{index}" for index in range(len(array))]),
            groups=None if groups is None else groups[split],
            named=named,
            channels=channels,
        )
        for split, array in ready.items()
    }


def check_masks(masks: np.ndarray, where: str, table: ValueTable | None = None) -> np.ndarray:
    """Check stored masks and convert them to uint8 [N, H, W]: class numbers, as stored or by the table.

    Args:
        masks: [N, H, W], [N, H, W, 1] or [N, 1, H, W], whole numbers (or booleans), from 0 to 255 if there is no table; or,
            for a table of colors, uint8 [N, H, W, 3].
        where: their name in messages.

    Raises:
        DataError: the masks have another shape or type, or a value out of range.
    """
    if masks.ndim == 4 and 1 in (masks.shape[1], masks.shape[3]):
        masks = masks[..., 0] if masks.shape[3] == 1 else masks[:, 0]
    colored = table is not None and table.colored
    if colored and masks.ndim == 4 and masks.shape[3] == 3 and masks.dtype == np.uint8:
        return _by_table(masks, where, table)
    if masks.ndim != 3:
        axis = ". If the last axis is a color, list the colors in data.mask_values; if it has a class each, save argmax(-1)"
        raise DataError(
            f"{where} have shape {list(masks.shape)}; masks are [N, H, W], one class number per pixel"
            f"{axis if masks.ndim == 4 else ''}"
        )
    if masks.dtype.kind not in "iub":
        raise DataError(f"{where} have type {masks.dtype}; masks are whole numbers from 0: save them as uint8")
    if colored:
        raise DataError(f"{where} have one number per pixel, and data.mask_values has colors; list the numbers there")
    if table is not None:
        return _by_table(masks, where, table)
    if masks.dtype == np.uint8:
        return masks
    found: set[int] = set()
    for index, mask in enumerate(masks):
        if mask.size and mask.min() < 0:
            raise DataError(
                f"{where}: mask {index} has values from {mask.min()} to {mask.max()}; they must be class numbers from 0 to "
                "254, and 255 for unlabeled pixels"
            )
        if len(found) <= MOST_UNNAMED:
            found.update(np.unique(mask).tolist())
    if max(found, default=0) > IGNORE or any(mask.max(initial=0) > IGNORE for mask in masks):
        raise refusal(found, where)
    return masks.astype(np.uint8)


def _by_table(masks: np.ndarray, where: str, table: ValueTable | None) -> np.ndarray:
    assert table is not None
    out = np.empty(masks.shape[:3], dtype=np.uint8)
    for index, mask in enumerate(masks):
        values = pack(mask) if table.colored else mask
        unlabeled = np.zeros(values.shape, dtype=bool) if table.colored else values == IGNORE
        out[index] = table.classes_of(values, unlabeled, f"{where}: mask {index}")
    return out


def name_values(
    masks: dict[str, np.ndarray],
    names: Sequence[str] | None,
    section: DataSection,
    where: str,
    warnings: list[str],
    table: ValueTable | None = None,
    ids: Mapping[str, Sequence[str]] | None = None,
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The class indices of all splits and the names of the classes. The class ``section.ignore`` becomes `IGNORE`.

    Masks of the values 0 and 255 alone have two classes, unless ``section.ignore`` or the number of names says otherwise.

    Args:
        masks: split -> uint8 [N, H, W], class numbers; 255 means unlabeled.
        names: the names of the classes; None if the source has only numbers, which ``section.classes`` may name.
        warnings: sentences for the user are added to it.
        table: what the masks were converted by, if anything.
        ids: split -> the names of the masks in messages.

    Raises:
        DataError: a value is out of range.
        RequestError: ``section.classes`` or ``section.ignore`` do not fit.
    """

    def called(split: str, index: int) -> str:
        return f"{split} image {index}" if ids is None else ids[split][index]

    if table is not None:
        given = names if names is not None else section.classes
        if given is not None and len(given) != len(table.values):
            raise RequestError(f"{table.place} has {len(table.values)} values, and {where} names {len(given)} classes")
        names = table.names if given is None else given
    has = {split: _presence(array) for split, array in masks.items()}
    if table is None and section.ignore is None and len(names or section.classes or BINARY) == 2:
        _refuse_mixture(has, where, called)
        if _used(has).tolist() == list(BINARY):
            masks = {split: array // IGNORE for split, array in masks.items()}
            has = {split: _presence(array) for split, array in masks.items()}
            names = BINARY_NAMES if names is None and section.classes is None else names
            warnings.append(
                "the masks have the values 0 and 255 alone, which were read as two classes; if 255 means unlabeled, say so "
                "with --set data.ignore=255"
            )
    _check_known(has, names, where, called)
    used = _used(has)
    labeled = used[used != IGNORE]
    if not len(labeled):
        raise DataError(f"{where}: the masks have no labeled pixel")
    if names is None and section.classes is not None and labeled[-1] >= len(section.classes):
        raise refusal(used.tolist(), where)
    if used.tolist() == list(BINARY):
        warnings.append("the masks have the values 0 and 255 alone, and 255 was read as unlabeled: one class is left")
    if names is None and section.classes is None and _count_objects(has):
        warnings.append(
            "in every mask the values count from 1 without gaps, to another number in each; if they are numbers of objects, "
            "save the classes of the objects instead"
        )
    if section.ignore == BACKGROUND and names is None and section.classes is None and labeled[0] == 0:
        warnings.append(
            "the masks have numbers without names, so 0 was taken for the background, which data.ignore leaves out; if 0 is a "
            "class, --set data.ignore=null keeps it"
        )
    return _as_classes(masks, has, names, section, where, table)


def order_classes(
    masks: dict[str, np.ndarray], names: Sequence[str], section: DataSection, where: str
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """`name_values` for masks that were drawn as class numbers, and whose classes have names.

    Raises:
        DataError: no class is left.
        RequestError: ``section.classes`` or ``section.ignore`` do not fit.
    """
    return _as_classes(masks, {split: _presence(array) for split, array in masks.items()}, names, section, where)


def _as_classes(
    masks: dict[str, np.ndarray],
    has: Mapping[str, np.ndarray],
    names: Sequence[str] | None,
    section: DataSection,
    where: str,
    table: ValueTable | None = None,
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The last step of `name_values`: the order of ``section.classes``, and ``section.ignore``.

    Raises:
        DataError: no class is left.
    """
    values = {split: np.flatnonzero(found[:, :IGNORE].any(0)) for split, found in has.items()}
    placed, classes = name_numbers(values, names, section, where)
    lookup = np.full(256, IGNORE, dtype=np.uint8)
    for split, part in values.items():
        lookup[part] = placed[split]
    every = np.arange(len(classes))
    index = every if names is section.classes is None else name_numbers({"all": every}, names, section, where)[0]["all"]
    named = names is not None or section.classes is not None
    ignored = _ignored(classes, index, table, named=named, section=section, where=where)
    if ignored is not None:
        shifted = np.where(lookup > ignored, lookup - 1, lookup)
        lookup = np.where((lookup == ignored) | (lookup == IGNORE), IGNORE, shifted).astype(np.uint8)
        if len(classes) == 1:
            raise DataError(f"{where}: the masks have the class {classes[0]} alone, which data.ignore leaves out")
        classes = tuple(name for index, name in enumerate(classes) if index != ignored)
    same = np.array_equal(lookup[lookup != IGNORE], np.flatnonzero(lookup != IGNORE)) and ignored is None
    return {split: array if same else lookup[array] for split, array in masks.items()}, classes


def resize_masks(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize masks to (height, width) by nearest neighbor, uint8 [N, *size]."""
    if masks.shape[1:] == size:
        return np.ascontiguousarray(masks)
    return np.stack([resize(mask[..., None], size, "nearest")[..., 0] for mask in masks])


def _presence(masks: np.ndarray) -> np.ndarray:
    """Which values each mask has, bool [N, 256]."""
    there = np.zeros((len(masks), 256), dtype=bool)
    for row, mask in zip(there, masks, strict=True):
        row[mask.reshape(-1)] = True
    return there


def _used(has: Mapping[str, np.ndarray]) -> np.ndarray:
    """The values that any mask has, ascending."""
    return np.flatnonzero(np.any([found.any(0) for found in has.values()], axis=0))


def _check_known(
    has: Mapping[str, np.ndarray], names: Sequence[str] | None, where: str, called: Callable[[str, int], str]
) -> None:
    known = IGNORE if names is None else len(names)
    for split, found in has.items():
        for index in np.flatnonzero(found[:, known:IGNORE].any(1))[:1]:
            value = known + int(found[index, known:IGNORE].argmax())
            raise DataError(
                f"{where}: the mask of {called(split, index)} has the value {value}; there are {known} classes "
                f"({', '.join(names or ())}), counted from 0, and 255 means unlabeled. Other values can be listed in "
                "data.mask_values"
            )


def _count_objects(has: Mapping[str, np.ndarray]) -> bool:
    """Whether values look like numbers of objects, which start anew in each mask."""
    rows = np.concatenate([found[:, 1:IGNORE] for found in has.values()])
    tops = rows.sum(1)
    gapless = rows.cumsum(1)[np.arange(len(rows)), np.maximum(tops, 1) - 1] == tops
    return bool(gapless.all()) and len({*tops.tolist()}) >= MOST_BY_CHANCE


def _refuse_mixture(has: Mapping[str, np.ndarray], where: str, called: Callable[[str, int], str]) -> None:
    """Refuse masks of which some have the values 0 and 255 and others 0 and 1: 255 could mean 1, or unlabeled."""
    every = [(split, index, row) for split, found in has.items() for index, row in enumerate(found)]
    ones = [(split, index) for split, index, row in every if row[1]]
    tops = [(split, index) for split, index, row in every if row[IGNORE]]
    if ones and tops and _used(has).tolist() in ([0, 1, IGNORE], [1, IGNORE]) and not {*ones} & {*tops}:
        raise DataError(
            f"{where}: {len(tops):,} masks have the value 255, such as that of {called(*tops[0])}, and {len(ones):,} others the "
            f"value 1, such as that of {called(*ones[0])}. If both mean the same, save 255 as 1; if 255 means unlabeled, "
            "say so with --set data.ignore=255"
        )


def _ignored(
    classes: tuple[str, ...],
    index: np.ndarray,
    table: ValueTable | None,
    *,
    named: bool,
    section: DataSection,
    where: str,
) -> int | None:
    """The index of the class ``section.ignore``, or None.

    Args:
        index: of each class number, in ``classes``.
        table: what the masks were converted by. If it has numbers, one to ignore is among them; else it is a class number.
    """
    wanted = section.ignore
    table = None if table is None or table.colored else table
    if wanted is None:
        return None
    if isinstance(wanted, int):
        if table is not None and wanted in table.values:
            return int(index[table.values.index(wanted)])
        if wanted == IGNORE:
            return None
        if table is not None:
            raise RequestError(
                f"data.ignore is {wanted}, which is not in {table.place}; that has {', '.join(table.names[:LISTED])}"
            )
        if wanted >= len(classes):
            raise RequestError(f"data.ignore is {wanted}, but {where} has {len(classes)} classes, counted from 0")
        return int(index[wanted])
    if wanted in classes:
        return classes.index(wanted)
    if wanted == BACKGROUND and not named:
        return 0  # for values without names, the background is 0 by convention
    raise RequestError(f"data.ignore: {where} has no class {wanted!r}; {near(wanted, classes)}")
