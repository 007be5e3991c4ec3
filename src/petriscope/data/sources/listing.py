"""Image sets over image files that were decoded into one array, shared by folders and tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from petriscope.core.errors import DataError, RequestError, near, shortened, shown
from petriscope.core.files import readable
from petriscope.core.names import tidy
from petriscope.core.progress import track
from petriscope.core.recipe import DataSection
from petriscope.data.decode import pages_of, workers
from petriscope.data.decode_many import Decoded
from petriscope.data.imageset import ImageSet
from petriscope.data.in_memory import Page, Within
from petriscope.data.sources.label_sets import FLAGS
from petriscope.data.sources.labels import index_names, name_numbers, say_missing, text_numbers, without_decimals
from petriscope.data.sources.spelling import split_in, split_of

MICROMETERS = "micrometers_per_pixel"  # the column
PACKED = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
TEXT_TABLES = (".csv", ".tsv", ".txt")
JSON_TABLES = (".jsonl", ".ndjson")  # an object per line
TABLES = (*TEXT_TABLES, *JSON_TABLES, ".parquet", ".pq")
FOUND_TABLES = tuple(suffix for suffix in TABLES if suffix != ".txt")  # in a folder, where .txt may be anything
SUBMISSION = re.compile(r"sample[ _-]?submissions?", re.IGNORECASE)  # a table of images without their labels
USUAL = ("labels", "metadata")  # what tables of images are called
SUBSET = re.compile(r"(?:sub|data)?sets?|partitions?|(?:cv)?folds?|phase|usage")
FEW = 20  # different values of a column that may tell subsets apart

# What other tools call the columns path and label, in lower case and without separators.
CALLED = {
    "path": re.compile("(?:image|img)?(?:file)?(?:path|name)|(?:image|img)(?:file)?|file"),
    "label": re.compile("class(?:name|label)?|labels|labelname|category|target|findinglabels?"),
    "split": re.compile("split"),
}
# What columns are called that say which images belong together; and those that may say it.
GROUP = re.compile("groups?(?:id|name)?")
MAY_GROUP = re.compile(
    "(?:patient|subject|participant|case|donor|animal|specimen|lesion|slide|wsi|plate|well)s?(?:id|name|number|no|code)?"
)
# A column of names of files, where no other is called like a path.
IMAGE_ID = re.compile("(?:image|img|file|isic)?id(?:code)?|(?:image|img)index")


def is_called(name: str, wanted: str) -> bool:
    """Whether a column is called ``path``, ``label`` or ``split``, in one of the usual ways."""
    return _key(name) == wanted or CALLED[wanted].fullmatch(_key(name)) is not None


def is_image_id(name: str) -> bool:
    """Whether a column is called like one of names of images, in one of the usual ways."""
    return IMAGE_ID.fullmatch(_key(name)) is not None


def _key(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def has_splits(cells: Sequence[str]) -> bool:
    """Whether cells name the split of every row."""
    splits = {split_of(value) for value in {*cells}}
    return "train" in splits and len(splits) > 1 and None not in splits


def split_doubt(name: str, cells: Sequence[str], several: bool = False) -> str:
    """Why a column that may say the splits is not read so; empty if it does not look like one."""
    values = {*cells}
    if several and has_splits(cells):
        return "another column may too"
    named = {split for value in values if (split := split_of(value))}
    odd = {value for value in values if not split_of(value)}
    if "train" in named and odd and (len(named) > 1 or not any(map(tidy, odd))):
        row = next(row for row, value in enumerate(cells) if value in odd)
        return f"row {row} (counted from 0) {f'has {shown(cells[row])}' if tidy(cells[row]) else 'is empty'}"
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    flags = split_in(words) is not None and {value.strip().lower() for value in values} <= FLAGS.keys()
    if flags or (SUBSET.fullmatch(_key(name)) and 1 < len(values) <= FEW):
        return f"it has the values {shortened(', '.join(sorted(values)))}"
    return ""


@dataclass(frozen=True)
class ImageFile:
    """An image file of a folder or a table.

    Args:
        id: the name of the image, as in `ImageSet.ids`.
        place: the path of the file, also as text; or the file itself if it is within another.
        split: train, val, test or ``all``.
        label: the class in the source; empty for a mask.
        mask: the file of its mask, if it has one or should have one.
    """

    id: str
    place: str | Path | Within | Page
    split: str
    label: str
    mask: Path | None = None

    def __post_init__(self) -> None:
        # What is made of a source goes into files in UTF-8; the path alone keeps bytes that are not.
        if not (self.id.isascii() and self.label.isascii()):
            object.__setattr__(self, "id", readable(self.id))
            object.__setattr__(self, "label", readable(self.label))

    @property
    def path(self) -> Path | Within | Page:
        """The file."""
        return Path(self.place) if isinstance(self.place, str) else self.place

    @property
    def mask_file(self) -> Path:
        """``mask``, where there is one."""
        assert self.mask is not None
        return self.mask


def agreed_splits(splits: Mapping[Path, str | None], source: str) -> dict[Path, str]:
    """The split of each file that images are stored in, where the names of all say one; ``all`` for each, where none does.

    Raises:
        DataError: the names of some say one.
    """
    without = [path for path, split in splits.items() if split is None]
    if without and len(without) < len(splits):
        other = next(path for path, split in splits.items() if split is not None)
        raise DataError(
            f"{source}: the name of {other.name} says its split, and that of {without[0].name} does not; name all of them "
            "train, val or test, or none"
        )
    return {path: split or "all" for path, split in splits.items()}


def labeled_sets(
    decoded: Decoded,
    splits: Sequence[str],
    labels: Sequence[str],
    about: str,
    listed: Sequence[str] | None,
    names: Sequence[str],
    groups: np.ndarray | None,
    columns: Mapping[str, np.ndarray],
    section: DataSection,
    source: str,
    warnings: list[str],
) -> dict[str, ImageSet]:
    """One image set per split, from the label of each file as text.

    Args:
        splits, labels, names, groups, columns: of all files; the names become ids.
        about: where the labels are, in words.
        listed: the names of classes that labels may be the numbers of.
    """
    rows, labels = rows_by_split(decoded, splits), without_decimals(labels)
    numbers = text_numbers(labels, listed or section.classes, about)
    if numbers is not None:
        targets, classes = name_numbers({s: numbers[r] for s, r in rows.items()}, listed, section, source)
    else:
        targets, classes = index_names({s: [labels[row] for row in r] for s, r in rows.items()}, section, source)
    named = numbers is None or listed is not None or section.classes is not None
    warnings += say_missing(labels, classes, section, source)
    if {*splits} == {"all"}:
        text = "{}: the column {} may say the splits, and is not read as such: names of files are, or a column split of Parquet"
        cells = {name: column.tolist() for name, column in columns.items()}
        warnings += [
            text.format(source, name) for name in cells if has_splits(cells[name]) or split_doubt(name, cells[name])
        ]
    return sets_over(decoded, rows, targets, classes, names, groups, named, columns)


def rows_by_split(decoded: Decoded, splits: Sequence[str]) -> dict[str, np.ndarray]:
    """The readable files of each split that has any, as int64 indices into the list of files. Splits are in the order of their
    first occurrence."""
    numbers = {split: number for number, split in enumerate(dict.fromkeys(splits))}
    of_each = np.fromiter((numbers[split] for split in splits), np.int64, len(splits))[decoded.kept]
    rows = {split: decoded.kept[of_each == number] for split, number in numbers.items()}
    return {split: indices for split, indices in rows.items() if len(indices)}


def sets_over(
    decoded: Decoded,
    rows: dict[str, np.ndarray],
    targets: dict[str, np.ndarray],
    classes: tuple[str, ...],
    names: Sequence[str],
    groups: np.ndarray | None,
    named: bool = True,
    columns: Mapping[str, np.ndarray] | None = None,
) -> dict[str, ImageSet]:
    """One image set per split, all of them views of the same pixels.

    Args:
        rows: from `rows_by_split`.
        targets: class indices, int64, of the rows of each split.
        names, groups, columns: of all files; the names become ids.
        named: whether the classes have names in the source or in the recipe.
    """
    ids = np.array(names)
    columns = {**(columns or {}), **_pixel_sizes(decoded)}
    return {
        split: ImageSet(
            pixels=decoded.pixels,
            known=(decoded.pixels, decoded.digests),
            targets=targets[split],
            classes=classes,
            ids=ids[indices],
            groups=None if groups is None else groups[indices],
            sizes=decoded.sizes[indices],
            padded=decoded.padded,
            columns={name: values[indices] for name, values in columns.items()},
            rows=indices,
            named=named,
            channels=decoded.channels,
        )
        for split, indices in rows.items()
    }


def _pixel_sizes(decoded: Decoded) -> dict[str, np.ndarray]:
    """The column with the micrometers per pixel that files say, if any does."""
    if decoded.micrometers is None or not len(decoded.micrometers):
        return {}
    words = [
        "" if np.isnan(height) else f"{height:.6g}" if height == width else f"{height:.6g} x {width:.6g}"
        for height, width in decoded.micrometers.tolist()
    ]
    return {MICROMETERS: as_column(words)}


def single_pages(found: list[ImageFile], section: DataSection) -> list[ImageFile]:
    """The files, or their pages where each of these is an image: ``name#0``, ``name#1`` ... A file that cannot be opened stays,
    and is said to be unreadable when it is decoded."""
    if section.pages != "images":
        return found
    with ThreadPoolExecutor(workers()) as pool:
        pages = pool.map(lambda file: pages_of(file.path), found)
        every = list(track(pages, "looking for pages", len(found), "files"))
    return [
        replace(file, id=f"{file.id}#{page.number}", place=page) if isinstance(page, Page) else file
        for file, pages in zip(found, every, strict=True)
        for page in pages
    ]


def as_column(values: Iterable[str]) -> np.ndarray:
    """Values of a column, object [N]: equal values are one string in memory, since most columns have few."""
    known: dict[str, str] = {}
    return np.array([known.setdefault(value, value) for value in values], dtype=object)


def folder_column(names: Sequence[str]) -> dict[str, np.ndarray]:
    """The column that images in folders have: the folder that each lies in, as in its id."""
    known: dict[str, str] = {}  # a path for each of many files would take longer than to find them

    def folder(name: str) -> str:
        head = name[: name.rfind("/") + 1]
        if head not in known:
            known[head] = str(PurePosixPath(head))
        return known[head]

    return {"folder": as_column(map(folder, names))}


def group_column(names: Sequence[str], section: DataSection, where: str, warnings: list[str]) -> str | None:
    """The column that says which images belong together: the one that ``section.group`` names, else one called group, whatever
    its case. None: there is none, or images from elsewhere do not have that of a model.

    Raises:
        RequestError: there is no column ``section.group``.
    """
    if section.group in names:
        return section.group
    if section.group is not None:
        if section.of_model:
            return None
        raise RequestError(f"data.group: {where} has no column {section.group!r}; {near(section.group, names)}")
    if "group" in names:
        return "group"
    called = [name for name in names if GROUP.fullmatch(_key(name))]
    if len(called) != 1:
        return None
    warnings.append(f"{where}: the column {called[0]} was read as group")
    return called[0]


def say_may_group(cells: Mapping[str, np.ndarray], section: DataSection, where: str) -> list[str]:
    """A sentence on columns that may say which images belong together, in a source where none was read so."""
    if section.of_model:
        return []
    found = [
        name
        for name, values in cells.items()
        if (MAY_GROUP.fullmatch(_key(name)) or GROUP.fullmatch(_key(name)))
        and 1 < len({*values.tolist()}) < len(values)
    ]
    if not found:
        return []
    several = len(found) > 1
    return [
        f"{where}: the column{'s' * several} {' and '.join(found)} may say which images belong together, such as those of one "
        f"patient, and {'were' if several else 'was'} not read so; --set data.group={found[0]} keeps them in one split"
    ]


def say_folders_may_group(names: Sequence[str], section: DataSection, where: str) -> list[str]:
    """A sentence on images with masks, without groups, that lie in several folders, such as one of each patient."""
    folders = {name[: name.rfind("/")] for name in names if "/" in name}
    if section.group is not None or section.of_model or not 2 < len(folders) <= len(names) / 2:
        return []
    return [
        f"{where}: its images lie in {len(folders):,} folders, such as {shortened(sorted(folders)[0])}; if those of a folder "
        "belong together, as of one patient, --set data.group='^(.*)/' keeps them in one split"
    ]


def say_turned(files: Sequence[object], rest: str) -> list[str]:
    """A sentence on images that are turned upright by their EXIF tag, while what is drawn on them is not; none without such."""
    if not files:
        return []
    have = "1 image is" if len(files) == 1 else f"{len(files):,} images are"
    return [
        f"{have} turned upright by the EXIF tag, such as {files[0]}{rest} on the upright image. Look at one of them"
    ]


def groups_of(section: DataSection, names: Sequence[str]) -> np.ndarray | None:
    """The groups of images by their ids: what the pattern ``section.group`` finds in them; None without a pattern, or where the
    pattern of a model does not find something in all images from elsewhere.

    Raises:
        DataError: it finds nothing in an id.
    """
    if section.group is None:
        return None
    out = []
    for name in names:
        match = re.search(section.group, name)
        found = None if match is None else match.group(1) if match.re.groups else match.group(0)
        if found is None:
            if section.of_model:
                return None
            raise DataError(
                f"data.group: the pattern {section.group} matches nothing in {name}; every image needs a group, so change the "
                "pattern, or move the file away"
            )
        out.append(found)
    return np.array(out)
