"""Find images and their masks in a folder, in the layouts that data sets use."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from petriscope.core.errors import DataError
from petriscope.core.names import tidy
from petriscope.data.omissions import LeftOut
from petriscope.data.sources.listing import ImageFile
from petriscope.data.sources.spelling import KINDS_OF_MASK, Role, Split, bare_stem, kind_of_mask, may_say_masks, spelled
from petriscope.data.sources.split_lists import list_files, split_lists
from petriscope.data.walk import Folder, count_others, stem_of

NAMES = "classes.txt"  # the names of the classes of masks, from 0, one per line
COLOR_TABLES = ("labelmap.txt", "class_dict.csv")  # of CVAT, and of CamVid and sets like it
SHOWN = 5  # folders that a sentence lists
MOST_CLASSES = 20  # folders that may be classes
_ONE_OF_SEVERAL = re.compile(
    r"(?P<first>(?:.*[ _.-])?(?:mask|label|seg|segmentation|gt))[ _.-]?\d+", re.IGNORECASE
)  # as x_mask_1 beside x_mask
HOW = "put images in images and their masks, with the same names, in masks; or both in train, val and test"


class _Key(NamedTuple):
    """What the folders of images and of masks that belong together have in common."""

    split: Split | None
    rest: tuple[str, ...]


@dataclass(frozen=True)
class Pairs:
    """Images and their masks.

    Args:
        files: the images, each with the mask that it has or should have; in the order of their splits and names.
        alone: images without masks and masks without images: the stem of each, and a sentence on what is wrong.
    """

    files: list[ImageFile]
    alone: list[tuple[str, str]]


Files = list[tuple[Folder, str]]  # the folder and the name of each file


def find_pairs(tree: Folder, left_out: LeftOut, notes: list[str]) -> Pairs | None:
    """The images of a folder with their masks; None if it has no such layout.

    Folders of images and of masks may be called as usual (images, imgs, JPEGImages; masks, labels, SegmentationClass) and lie
    above, in or beside the folders of splits. An image and its mask may also be ``X.png`` and ``X_mask.png`` in one folder.

    Args:
        tree: the folder.
        left_out: what is left out is added to it.
        notes: how the folder was understood, where that is not plain, is added to it; one sentence each.

    Raises:
        DataError: folders that cannot be told apart, or two images or masks of one name.
    """
    places: dict[_Key, dict[Role | None, Folder]] = {}
    for folder in tree.all():
        if folder.images:
            key, role = _place(folder)
            other = places.setdefault(key, {}).setdefault(role, folder)
            if other is not folder and role is not None:
                raise DataError(
                    f"{tree.path} has the {role} {other.id} and {folder.id}, which seem to be of the same images; keep one "
                    "of them, and move the other out of the source"
                )
    found = {key: files for key, part in places.items() if (files := _two_folders(part)) is not None}
    found_in_folders = bool(found)
    if not found:
        found = {key: files for key, part in places.items() if (files := _one_folder(part.get(None))) is not None}
        notes += [_told_apart(tree, files) for files in list(found.values())[:1]]
    if not found:
        _refuse_strangers(tree, places)
        return None
    inner = sorted({_spelling(files[0][0][0], key.rest[-1]) for key, files in found.items() if key.rest})
    numbered = len({re.sub(r"\d+", "", name) for name in inner}) == 1
    if found_in_folders and 1 < len(inner) <= MOST_CLASSES and not numbered:
        named = ", ".join(inner[:SHOWN]) + " ..." * (len(inner) > SHOWN)
        notes.append(
            f"{tree.path}: images and their masks were read, and folders ({named}) are no classes; to classify by them, move the "
            "masks out of the source"
        )
    _leave_out_rest(places, found, left_out, notes)
    listed = {id.rpartition("/")[2] for id in list_files(tree)}
    count_others(tree, left_out, (NAMES, *COLOR_TABLES, *listed))
    if len({key.split is None for key in found}) > 1:
        some = next(key for key in found if key.split is None)
        raise DataError(
            f"{tree.path} has images in split folders and {found[some][0][0][0].path} beside them; move them into a split"
        )
    out = Pairs([], [])
    for split in ("train", "val", "test", None):
        for key in sorted(key for key in found if key.split == split):
            images, masks = found[key]
            _match(images, _of_one_kind(masks, left_out), split or "all", out)
    lists = split_lists(tree, "Segmentation") if all(key.split is None for key in found) else {}
    return _by_lists(out, lists, left_out) if lists else out


def _spelling(folder: Folder, part: str) -> str:
    """A part of the path of a folder, as it is written there."""
    return next((each for each in folder.id.split("/") if tidy(each).casefold() == part), part)


def _by_lists(pairs: Pairs, splits: Mapping[str, str], left_out: LeftOut) -> Pairs:
    """The images that are in a list of a split, each in its split."""
    files = []
    for file in pairs.files:
        if (split := splits.get(stem_of(file.path.name))) is None:
            left_out.add("image{s} in no list of ImageSets/Segmentation", file.id)
        else:
            files.append(replace(file, split=split))
    return Pairs(files, [(stem, text) for stem, text in pairs.alone if stem in splits])


def _place(folder: Folder) -> tuple[_Key, Role | None]:
    split: Split | None = None
    role: Role | None = None
    rest = []
    for name in folder.id.split("/") if folder.id else []:
        says = spelled(name)
        role = says.role or role
        if says.split and split in (None, says.split):
            split = says.split
        elif says.split or not says.role:
            rest.append(tidy(name).casefold())
    return _Key(split, tuple(rest)), role


def _two_folders(part: dict[Role | None, Folder]) -> tuple[Files, Files] | None:
    """The files of a folder of images and of the folder of their masks."""
    masks, images = part.get("masks"), part.get("images", part.get(None))
    if masks is None or images is None:
        return None
    files = [(images, name) for name in images.images], [(masks, name) for name in masks.images]
    common = _common([_by_stem(side, _bare, strict=False) for side in files])
    if "images" not in part and 2 * common < len(files[1]):
        return None  # a class that is called like masks, beside an image or two
    return files


def _one_folder(folder: Folder | None) -> tuple[Files, Files] | None:
    """The images and the masks in one folder, if at least half of its files are pairs."""
    if folder is None or not may_say_masks(folder.images):
        return None
    read = {name: bare_stem(_stem(name)) for name in folder.images}
    masks = {name: key for name, (key, role) in read.items() if role == "masks"}
    if not masks:
        return None
    images = {name: {_stem(name), read[name][0]} for name in folder.images if name not in masks}
    known = {stem for stems in images.values() for stem in stems}
    if 4 * sum(key in known for key in masks.values()) < len(folder.images):
        return None
    return [(folder, name) for name in images], [(folder, name) for name in masks]


def _told_apart(tree: Folder, files: tuple[Files, Files]) -> str:
    (image, mask) = (part[0][0].id_of(part[0][1]) for part in files)
    return f"{tree.path}: images and masks were told apart by their names, such as {image} and {mask}; folders are no classes"


def _refuse_strangers(tree: Folder, places: dict[_Key, dict[Role | None, Folder]]) -> None:
    """Refuse folders of images and of masks that have nothing in common; they are no classes."""
    images = [part["images"] for part in places.values() if "images" in part]
    masks = [part["masks"] for part in places.values() if "masks" in part]
    if images and masks:
        raise DataError(
            f"{tree.path} has images in {images[0].id} and masks in {masks[0].id}, but it is not clear which belong "
            f"together; {HOW}"
        )


def _leave_out_rest(
    places: dict[_Key, dict[Role | None, Folder]],
    found: dict[_Key, tuple[Files, Files]],
    left_out: LeftOut,
    notes: list[str],
) -> None:
    used = {folder for files in found.values() for part in files for folder, _ in part}
    kinds: dict[Role | None, str] = {
        "images": "image{s} without a folder of masks",
        "masks": "mask{s} without a folder of images",
        None: "image{s} beside those with masks",
    }
    for part in places.values():
        for role, folder in part.items():
            if folder not in used:
                left_out.add(kinds[role], folder.id_of(folder.images[0]), len(folder.images))
    spare = [part[None] for part in places.values() if None in part and part[None] not in used]
    for images, masks in found.values():
        home, other = images[0][0], masks[0][0]
        notes += [
            f"{folder.path} has as many files as {home.path}, and was not used: masks were read from {other.path}. If the masks "
            f"that you want are in {folder.path}, move {other.path} out"
            for folder in spare
            if folder.path.parent == home.path.parent and len(folder.images) == len(images)
        ]


def _of_one_kind(masks: Files, left_out: LeftOut) -> Files:
    """The masks; where images have masks of several kinds, those of the first kind that most images have."""
    kinds: dict[str, dict[str, tuple[Folder, str]]] = {}
    for folder, name in masks:
        if (found := kind_of_mask(_stem(name))) is None:
            return masks
        kinds.setdefault(found[1], {})[found[0]] = folder, name
    every = {image for each in kinds.values() for image in each}
    usual = [kind for kind in KINDS_OF_MASK if 2 * len(kinds.get(kind, {})) > len(every)]
    if len(kinds) < 2 or not usual or sum(map(len, kinds.values())) < len(masks):
        return masks
    for kind in sorted(kinds.keys() - {usual[0]}):
        folder, name = next(iter(kinds[kind].values()))
        say = f"mask{{s}} with {kind}, because there are {usual[0]} of the same images"
        left_out.add(say, folder.id_of(name), len(kinds[kind]))
    return list(kinds[usual[0]].values())


def _match(images: Files, masks: Files, split: str, out: Pairs) -> None:
    """Find the mask of each image, by equal stems, or else by stems without words such as ``mask``."""
    image_folder, mask_folder = images[0][0].path, masks[0][0].path
    if len(images) == 1 and len(masks) > 1 and _bare(images[0][1]) not in {_bare(name) for _, name in masks}:
        folder, name = images[0]
        text = (
            f"{masks[0][0].path} has {len(masks)} masks of {folder.path / name}; merge them into one, of the same name"
        )
        out.alone.append((_stem(name), text))
        return
    plain = _by_stem(images, _stem), _by_stem(masks, _stem)
    if plain[0].keys() != plain[1].keys():
        images, masks = _without_parts(images, masks, out)
        plain = _by_stem(images, _stem), _by_stem(masks, _stem)
    one, other = plain
    if one.keys() != other.keys():
        bare = _by_stem(images, _bare, strict=False), _by_stem(masks, _bare, strict=False)
        if len(bare[0]) == len(images) and len(bare[1]) == len(masks) and _common(bare) > _common(plain):
            one, other = bare
    for stem, (folder, name) in sorted(one.items()):
        found = other.get(stem)
        mask = mask_folder / f"{_stem(name)}.png" if found is None else mask_folder / found[1]
        out.files.append(ImageFile(folder.id_of(name), folder.path / name, split, "", mask))
        if found is None:
            out.alone.append((_stem(name), f"{folder.path / name} has no mask; put {mask.name} in {mask_folder}"))
    for stem in sorted(other.keys() - one.keys()):
        name = other[stem][1]
        out.alone.append((_stem(name), f"{mask_folder / name} has no image in {image_folder}; add it"))


def _without_parts(images: Files, masks: Files, out: Pairs) -> tuple[Files, Files]:
    """The images and masks without those of images that have several masks, such as ``x_mask`` and ``x_mask_1``."""
    known = {_stem(name): name for _, name in masks}
    several: set[str] = set()
    more: set[str] = set()
    for folder, name in (*images, *masks):
        if (found := _ONE_OF_SEVERAL.fullmatch(_stem(name))) and found["first"] in known:
            first = known[found["first"]]
            several.add(_bare(first))
            more.add(name)
            text = f"{folder.path / name} is one more mask of the image that {first} is of; merge its masks into one"
            out.alone.append((_bare(first), text))
    if not more:
        return images, masks
    kept = (
        [each for each in files if each[1] not in more and _bare(each[1]) not in several] for files in (images, masks)
    )
    return next(kept), next(kept)


def _by_stem(files: Files, key: Callable[[str], str], strict: bool = True) -> dict[str, tuple[Folder, str]]:
    out: dict[str, tuple[Folder, str]] = {}
    for folder, name in files:
        stem = key(name)
        if strict and stem in out:
            raise DataError(f"{folder.path} has both {out[stem][1]} and {name}; their stems must differ")
        out[stem] = folder, name
    return out


def _common(sides: Sequence[dict[str, tuple[Folder, str]]]) -> int:
    return len(sides[0].keys() & sides[1].keys())


def _stem(name: str) -> str:
    return unicodedata.normalize("NFC", stem_of(name))


def _bare(name: str) -> str:
    return bare_stem(_stem(name))[0]
