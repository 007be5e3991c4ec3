"""A folder of class folders, directly in the source or in a folder per split."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from petriscope.core.errors import DataError
from petriscope.core.names import tidy
from petriscope.core.recipe import DataSection
from petriscope.data.decode import probe_file
from petriscope.data.decode_many import Known, decode_files
from petriscope.data.imageset import ImageSet
from petriscope.data.omissions import LeftOut
from petriscope.data.sources.labels import index_names, say_missing
from petriscope.data.sources.listing import (
    FOUND_TABLES,
    PACKED,
    SUBMISSION,
    TABLES,
    USUAL,
    ImageFile,
    folder_column,
    groups_of,
    rows_by_split,
    sets_over,
    single_pages,
)
from petriscope.data.sources.spelling import bare_stem, role_in, spelled, split_and_rest, split_in, split_of
from petriscope.data.walk import Folder, are_arrays, count_others, stem_of, suffix_of

BOXES = (".txt", ".xml", ".json")  # files that other tools write boxes and outlines to
TOOLS = ("COCO", "Pascal VOC", "YOLO", "LabelMe", "CVAT", "Label Studio")  # of which exports are read
TABLE = "list the images in a table (CSV) with the columns path and label, and name that as the source"
SHOWN = 5  # folders that a sentence lists
LISTS = (*TABLES, ".json", ".lst", ".mat")  # suffixes of files that may list images
MOST_LISTS = 100
LIST_WORDS = frozenset(("list", "lists", "files", "names", "ids", "images", "img", "set", "split", "splits", "labels"))
LOOKED_AT = 2_000  # files of a class, to see how they are called
TWINS = 0.4  # of the files of a class
_PART = re.compile("(?:part|chunk|batch|image|img|folder|disk|archive)(?:e?s)?", re.IGNORECASE)
CLASS_LIST = re.compile(r"class_?dict|label_?map", re.IGNORECASE)
_LAST_WORD = re.compile(r"(?P<rest>.+)(?P<end>[-_. ][^\W\d_]+)")
_WORD = re.compile(r"([^\W\d_]+)[ _.()-]*\d")  # the word before the number of a file


def read(
    path: Path, found: list[ImageFile], section: DataSection, warnings: list[str], known: Known | None = None
) -> dict[str, ImageSet]:
    """Read images from class folders. Their ids are their paths below the source, with forward slashes.

    Args:
        path: the source.
        found: its images, from `find_images`.
        section: its ``group`` is a pattern that is searched in the id. Images belong together if its first group, or the
            whole match, is the same.
        known: what is known of the contents of the images, if they are in an archive.

    Raises:
        DataError: an unreadable image, or an id that ``group`` does not match.
    """
    whole = [file.id for file in found]
    if known is None:
        found = single_pages(found, section)
    files, names = [file.id for file in found], [file.label for file in found]
    groups = groups_of(section, files)
    if groups is None and len(found) > len(whole):
        groups = np.array([file.id.rpartition("#")[0] for file in found])
        warnings.append("the pages of a file are one group of images, which stays together when splits are drawn")
    if groups is None:
        warnings += _say_inner_folders(found, section, path)
    decoded = decode_files([file.place for file in found], files, section, str(path), known)
    warnings += decoded.warnings
    rows = rows_by_split(decoded, [file.split for file in found])
    targets, classes = index_names(
        {split: [names[index] for index in indices] for split, indices in rows.items()}, section, str(path)
    )
    warnings += say_missing(names, classes, section, str(path), folders=True)
    return sets_over(decoded, rows, targets, classes, files, groups, columns=folder_column(files))


def find_images(tree: Folder, left_out: LeftOut, notes: list[str]) -> list[ImageFile]:
    """The images of a folder with their classes and splits, readable or not.

    Args:
        tree: a folder with class folders; or with folders of splits, in any usual spelling, that have them. A single folder
            around them is entered. Class folders may have subfolders.
        left_out: what is left out is added to it.
        notes: how the folder was understood, where that is not plain, is added to it; one sentence each.

    Raises:
        DataError: no images, a class folder that is empty in all splits, or folders that may be classes, splits or something
            else.
    """
    out, twins = list[ImageFile](), list[tuple[Folder, int, str]]()
    try:
        splits = _split_folders(_enter(tree, "all", left_out, notes), left_out, notes)
        splits = {
            split: folder if split == "all" else _enter(folder, split, left_out, notes)
            for split, folder in splits.items()
        }
        filled = {tidy(entry.name) for folder in splits.values() for entry in folder.filled}
        for split, folder in splits.items():
            classes = _class_folders(folder, filled, left_out, notes)
            for part, entry in _parts(split, classes, notes):
                files = sorted(file for inner in part.all() for file in _files_in(inner))
                within = split if part is entry else str(split_of(part.name))
                label = tidy(entry.name)
                out += [ImageFile(name, path, within, label) for name, path in files]
                count_others(part, left_out)
                twins += _twins(files, part)
        notes += _say_classes(next(iter(splits.values())))
        if {file.split for file in out} == {"all"}:
            notes += _lists_of_splits(tree)
        notes += _say_twins(twins)
    except DataError as error:
        raise DataError(". ".join([str(error), *_hints(tree)])) from None
    return out


def _say_inner_folders(found: Sequence[ImageFile], section: DataSection, path: Path) -> list[str]:
    """A sentence on folders in the class folders, which may be the classes, or may be of patients."""
    if section.group is not None or section.of_model:
        return []
    below = set[tuple[int, tuple[str, ...]]]()
    for file in found:
        parts = tuple(file.id.split("/")[:-1])
        depth = next((place + 1 for place, part in enumerate(parts) if tidy(part) == file.label), 0)
        if not depth or len(parts) == depth:
            return []
        below.add((depth, parts))
    if len({depth for depth, _ in below}) > 1:
        return []
    depth = next(iter(below))[0]
    least = min(len(parts) for _, parts in below)
    for place in range(depth, least):  # such as class/SOB/subtype, where the first are all alike
        inner = sorted({parts[place] for _, parts in below})
        if len(inner) > 1:
            break
    else:
        return []
    if 2 * len(inner) > len(found) or any(map(split_of, inner)):
        return []
    drawn = {file.split for file in found} == {"all"}
    pattern = f"^(?:[^/]*/){{{place}}}([^/]*)/"
    keep = f"; if each is of one patient or slide, --set data.group='{pattern}' keeps it in one split" if drawn else ""
    return [
        f"{path}: the class folders have folders ({_few(inner)}), which were not read as classes. If these are the classes, move "
        f"them up into one folder, or {TABLE}{keep}"
    ]


def _files_in(folder: Folder) -> Iterator[tuple[str, str]]:
    """The ids and the paths of the images in a folder. Of many files, paths are texts, which take less time and memory."""
    below, at = folder.id_of(""), f"{folder.path}{os.sep}"
    return ((below + name, at + name) for name in folder.images)


def _enter(folder: Folder, split: str, left_out: LeftOut, notes: list[str]) -> Folder:
    """The folder itself, or the one below it that is its only folder with images and has folders again. What is beside that is
    counted."""
    while len(folder.filled) == 1 and not folder.images:
        inner = folder.filled[0]
        if inner.images or split_of(inner.name) not in (None, split):
            break
        notes.append(f"{folder.path} has one folder with images, {inner.name}; what is inside {inner.name} was read")
        count_others(replace(folder, folders=[each for each in folder.folders if each is not inner]), left_out)
        folder = inner
    return folder


def _lists_of_splits(tree: Folder) -> list[str]:
    """A sentence on files whose names say splits, in a source whose splits are drawn."""
    found = [
        part.id_of(name)
        for part in tree.all()
        if len(part.others) <= MOST_LISTS  # more have something to say of each image
        for name in part.others
        if suffix_of(name) in LISTS and _says_splits(stem_of(name))
    ]
    if not found:
        return []
    more = f" and {len(found) - 1:,} more" if len(found) > 1 else ""
    return [
        f"{tree.path}: {found[0]}{more} may say the splits; folders of classes were read, whose splits are drawn. For those that "
        "are published, put the images in train, val and test, or list them in a table with the columns path, label and split"
    ]


def _says_splits(stem: str) -> bool:
    """Whether the name of a list says a split, and nothing but that it is a list: ``train``, ``test_list``, ``val1``."""
    words = [word for word in re.split(r"[\W\d_]+", stem.casefold()) if word]
    rest = {word for word in words if spelled(word).split is None}
    return split_in(stem) is not None and rest <= LIST_WORDS


def _twins(files: Sequence[tuple[str, str]], part: Folder) -> list[tuple[Folder, int, str]]:
    """A class of whose files nearly half are called as its others with one more word, as masks are; how many, and the word."""
    stems = [stem_of(name[name.rfind("/") + 1 :]) for name, _ in files[:LOOKED_AT]]
    known, ends = {*stems}, Counter[str]()
    for stem in stems:
        if (found := _LAST_WORD.fullmatch(stem)) and found["rest"] in known:
            ends[found["end"]] += 1
    for end, count in ends.most_common(1):
        if count > 1 and count >= TWINS * len(stems):
            return [(part, count, end)]
    return []


def _say_twins(found: Sequence[tuple[Folder, int, str]]) -> list[str]:
    if not found:
        return []
    part, count, end = found[0]
    rest = len(found) - 1
    more = f", and some in {rest} more class folder{'s' * (rest > 1)}," if rest else ""
    return [
        f"{count:,} files in {part.path}{more} are called as another with {end} behind its name; if these are masks or copies, "
        "move them out of the source"
    ]


def _split_folders(tree: Folder, left_out: LeftOut, notes: list[str]) -> dict[str, Folder]:
    """The folder with the class folders of each split; only ``all`` if there are no split folders."""
    splits = {folder: split for folder in tree.folders if (split := split_of(folder.name))}
    others = [folder for folder in tree.filled if folder not in splits]
    words = ", ".join(folder.name for folder in splits)
    if not any(folder.count for folder in splits):
        return {"all": tree}
    if not any(folder.filled for folder in splits):  # images, but no class folders
        if not others:
            raise DataError(
                f"{tree.path} has the split folders {words}, but no class folders in them; splits are called train, val and "
                f"test and have a folder for each class. If these are classes, {TABLE}"
            )
        notes.append(f"{tree.path}: {words} is read as a class and no split, since it has images but no class folders")
        return {"all": tree}
    if others:
        raise DataError(
            f"{tree.path} has split folders ({words}) and, beside them, {others[0].name} with images; move it into a split "
            f"(train, val or test), or out of the source. If all of these are classes, {TABLE}"
        )
    out: dict[str, Folder] = {}
    for folder, split in splits.items():
        if split in out:
            raise DataError(f"{tree.path} has both {out[split].name} and {folder.name}; keep one of them")
        out[split] = folder
    _count_loose(tree, left_out)
    for folder in tree.folders:
        if folder not in splits:
            count_others(folder, left_out)
    return out


def _class_folders(folder: Folder, filled: Set[str], left_out: LeftOut, notes: list[str]) -> list[Folder]:
    """The class folders in a folder, sorted by name; ``filled``: the classes that have images in any split."""
    if not folder.filled:
        raise DataError(_no_classes(folder))
    for entry in folder.folders:
        if not entry.count:
            others = _other_files(entry)
            if others or tidy(entry.name) not in filled:
                raise DataError(f"the class folder {entry.path} has no images{others}; put images in, or move it out")
            notes.append(f"the class folder {entry.path} has no images; other splits have some of {tidy(entry.name)}")
    says = [spelled(entry.name) for entry in folder.folders]
    strange = any(each.split or each.role == "masks" for each in says) or len(says) == 1
    splits = {split_in(entry.name) for entry in folder.folders}
    halves = (len(splits) > 1 and None not in splits) or _are_splits([entry.name for entry in folder.folders])
    if (strange and all(each.split or each.role for each in says)) or halves:
        raise DataError(
            f"{folder.path} has {', '.join(entry.name for entry in folder.folders)}, which do not look like classes; make a "
            "folder for each class, in train, val and test if there are splits; or put images in images and their masks in "
            f"masks. If these are classes, {TABLE}"
        )
    _refuse_twins(folder, notes)
    _refuse_masks(folder)
    _refuse_nested(folder.folders, notes)
    _count_loose(folder, left_out)
    return folder.folders


def _parts(split: str, classes: list[Folder], notes: list[str]) -> Iterator[tuple[Folder, Folder]]:
    """The folders with the images of each class; and the class folders. They differ where the splits are in the classes."""
    inner = [part for entry in classes for part in entry.filled]
    named = [part for part in inner if split_of(part.name)]
    if split != "all" or any(entry.images for entry in classes) or len(named) < len(inner):
        notes += [f"{part.path} is called like a split, but its images are read as of its class" for part in named[:1]]
        _say_inner(classes, notes)
        yield from zip(classes, classes, strict=True)
        return
    notes.append(
        f"the splits ({', '.join(dict.fromkeys(part.name for part in inner))}) were read from the class folders"
    )
    for entry in classes:
        for part in entry.filled:
            yield part, entry


def _say_inner(classes: list[Folder], notes: list[str]) -> None:
    """Say if all class folders have nothing but folders, and several of the same names, which may be the classes."""
    if len(classes) < 2 or any(entry.images for entry in classes):
        return
    shared = set.intersection(*({tidy(part.name) for part in entry.filled} for entry in classes))
    if len(shared) > 1:
        outer, inner = _few(entry.name for entry in classes), _few(sorted(shared))
        notes.append(
            f"{outer} were read as the classes, and each of them has the folders {inner}; if those are the classes, call the "
            f"outer folders train, val and test, or {TABLE}"
        )


def _few(names: Iterable[str]) -> str:
    """Names as a text; of many, the first."""
    first = list(islice(names, SHOWN + 1))
    return ", ".join(first[:SHOWN]) + " ..." * (len(first) > SHOWN)


def _count_loose(folder: Folder, left_out: LeftOut) -> None:
    """Count the files in a folder that should have only folders."""
    for name in folder.images:
        left_out.add("image{s} outside class folders", folder.id_of(name))
    count_others(replace(folder, folders=[]), left_out)


def _say_classes(folder: Folder) -> list[str]:
    """Sentences on class folders that may be parts of one set, and on those that have images beside folders of images."""
    out = []
    if _are_parts([entry.name for entry in folder.filled]):
        out.append(
            f"{_few(entry.name for entry in folder.filled)} in {folder.path} were read as classes; if they are parts of one set "
            f"of images, {TABLE}"
        )
    out += _say_halves([entry.name for entry in folder.filled])
    mixed = ((entry, part) for entry in folder.filled for part in entry.all() if part.images and part.filled)
    for entry, part in islice(mixed, 1):
        out.append(f"{part.path} has images, and more in {part.filled[0].name}; all of them were read as {entry.name}")
    return out


def _are_splits(names: Sequence[str]) -> bool:
    """Whether all names have one that differs in the word for a split alone, train among them, as trainA and testA."""
    rests: dict[str, set[str | None]] = {}
    for name in names:
        split, rest = split_and_rest(name)
        rests.setdefault(rest, set()).add(split)
    return bool(rests) and all(len(each) > 1 and "train" in each and None not in each for each in rests.values())


def _say_halves(names: Sequence[str]) -> list[str]:
    """A sentence on two of several names that differ in the word for a split alone, train in one of them."""
    known: dict[str, dict[str, str]] = {}
    for name in names:
        split, rest = split_and_rest(name)
        if split is not None and rest:
            known.setdefault(rest, {})[split] = name
    for found in known.values():
        if "train" in found and len(found) > 1:
            one, other, *_ = sorted(found.values())
            return [
                f"{one} and {other} were read as classes; if they are splits, put the classes in train, val and test"
            ]
    return []


def _are_parts(names: Sequence[str]) -> bool:
    """Whether names differ in numbers alone, and have a word such as part or images."""
    words = re.split(r"[\W\d_]+", names[0]) if len({re.sub(r"\d+", "", name) for name in names}) == 1 else []
    return len(names) > 1 and any(map(_PART.fullmatch, words))


def _refuse_masks(folder: Folder) -> None:
    """Refuse folders, at any depth, that are called like images and like masks, if half of the masks are called as images are,
    with or without a word more; they are no classes."""
    for home in folder.all():
        roles = {role_in(entry.name): entry for entry in reversed(home.filled)}
        if "images" not in roles or "masks" not in roles:
            continue
        known = {stem_of(name) for part in roles["images"].all() for name in part.images}
        masks = [stem_of(name) for part in roles["masks"].all() for name in part.images]
        if 2 * sum(not known.isdisjoint(_beginnings(stem)) for stem in masks) >= len(masks):
            raise DataError(
                f"{home.path} has {roles['images'].name} and {roles['masks'].name}, which look like images and their masks "
                "rather than classes. For masks, put the images in images and the mask of each, by the same name, in masks; to "
                f"classify, move the masks out of the source. If these are classes, {TABLE}"
            )


def _beginnings(stem: str) -> Iterator[str]:
    """A stem, and what is left of it without its last words."""
    yield stem
    yield bare_stem(stem)[0]
    for place in reversed(range(len(stem))):
        if stem[place] in "-_. ":
            yield stem[:place]


def _refuse_twins(folder: Folder, notes: list[str]) -> None:
    """Refuse a folder that is called like masks or images and whose files have the names of another folder's. For two other
    folders with files of the same names, one in color and one gray, a warning is added."""
    stems: dict[Folder, set[str]] = {}

    def stems_of(entry: Folder) -> set[str]:
        if entry not in stems:
            stems[entry] = {bare_stem(stem_of(name))[0] for part in entry.all() for name in part.images}
        return stems[entry]

    for entry in folder.folders:
        says = (spelled(entry.name).role, role_in(entry.name))
        if "masks" in says or re.search("image|img", entry.name, re.IGNORECASE):
            for other in folder.folders:
                if other is not entry and stems_of(other) == stems_of(entry):
                    raise DataError(
                        f"{folder.path} has {entry.name} and {other.name} with files of the same names: images and masks, or "
                        f"classes? Call them images and masks; if they are classes, {TABLE}"
                    )
    if len(folder.folders) == 2:
        grays = [_first_is_gray(entry) for entry in folder.folders]
        color, gray = folder.folders[:: -1 if grays[0] else 1]
        if {*grays} == {False, True} and stems_of(color) == stems_of(gray):
            notes.append(
                f"{color.path} and {gray.path} have files of the same names, in color and gray, and were read as classes; if "
                f"{gray.name} has masks of the images in {color.name}, call the folders masks and images"
            )


def _first_is_gray(entry: Folder) -> bool | None:
    """Whether the first image in a folder is gray, by its header; None: it cannot be read."""
    first = next((part.path / name for part in entry.all() for name in part.images), None)
    header = None if first is None else probe_file(first)[0]
    return None if header is None else header.gray


def _refuse_nested(classes: list[Folder], notes: list[str]) -> None:
    """Refuse a class folder that has the folders of all other classes again; say if it has one of them."""
    names = {tidy(entry.name) for entry in classes}
    for entry in classes:
        inside = {tidy(part.name): part for part in entry.all() if part.count}
        others = names - {tidy(entry.name)}
        again = sorted(others & inside.keys())
        if len(again) == len(others) > 1:
            raise DataError(
                f"{entry.path} has the class folders {', '.join(again)} again, nested in {entry.name}; keep one of the two, "
                "and move the other out of the source"
            )
        notes += [
            f"{inside[name].path} is called like a class, but its images are read as {entry.name}" for name in again
        ]


def _no_classes(folder: Folder) -> str:
    if not folder.images:
        return f"{folder.path} has no images{_other_files(folder)}"
    text = (
        f"{len(folder.images):,} images are in {folder.path} itself; make a folder for each class in it, and put the images "
        "of the class there"
    )
    if are_arrays(folder.images):
        return (
            f"{text}; each file has the array of one image, [H, W] or [H, W, C]. Arrays of many images, and their labels, can be "
            "saved together with numpy.savez(PATH, train_images=..., train_labels=...)"
        )
    words = [match[1] for name in folder.images if (match := _WORD.match(name))]
    if len(words) == len(folder.images) >= 2 * len({*words}) > 2:
        return f"{text}. If their names begin with their classes, as {folder.images[0]} with {words[0]}, {TABLE}"
    return f"{text}; or {TABLE}"


def _hints(tree: Folder) -> list[str]:
    """Sentences on what else is in a source that has no class folders."""
    out = []
    tables = [
        part.id_of(name)
        for part in tree.all()
        for name in part.others
        if suffix_of(name) in (*FOUND_TABLES, ".npz") and not SUBMISSION.fullmatch(stem_of(name))
    ]
    if table := min(tables, key=_rank, default=None):
        use = "unpack the archive, and name the table" if tree.path.is_file() else "name it"
        out.append(f"If {table} lists or holds the images, {use} as the source")
    for part in tree.all():
        stems = {Path(name).stem for name in part.images}
        labels = any(spelled(name).role == "masks" for name in part.id.split("/"))
        for name in part.others:
            if suffix_of(name) in BOXES and (Path(name).stem in stems or (labels and not stems)):
                kind = suffix_of(name)
                unpack = "; unpack the archive" if tree.path.is_file() else ""
                out.append(
                    f"{part.path} has {kind} files: boxes and outlines are read from folders, as {', '.join(TOOLS)} export them"
                    f"{unpack}"
                )
                break
    return out[:2]


def _rank(table: str) -> int:
    """How little the name of a table says that it lists the images."""
    stem = stem_of(table.rpartition("/")[2])
    if stem.casefold() in USUAL:
        return 0
    return 1 if split_and_rest(stem)[0] == "train" else 3 if CLASS_LIST.search(stem) else 2


def _other_files(folder: Folder) -> str:
    kinds = Counter(suffix_of(name) or "nameless" for part in folder.all() for name in part.others)
    if not kinds:
        return ""
    kind, count = kinds.most_common(1)[0]
    if kind in PACKED:
        return f" but {count:,} {kind} file{'' if count == 1 else 's'}, to be unpacked first"
    return (
        f" but {count:,} {kind} file{'' if count == 1 else 's'}, not read as {'an image' if count == 1 else 'images'}"
    )
