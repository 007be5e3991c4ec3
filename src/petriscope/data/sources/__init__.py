"""Sources of images: read what the user names into image sets. There is one module per kind of source."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import numpy as np

from petriscope.core.device import uncollected
from petriscope.core.errors import DataError, MissingSource, PetriscopeError, RequestError, near, shown
from petriscope.core.files import user_path
from petriscope.core.recipe import DataSection
from petriscope.data.decode import SUFFIXES
from petriscope.data.imageset import SPLITS, ImageSet
from petriscope.data.omissions import LeftOut
from petriscope.data.sources import medmnist, parquet_images, remote, stored_arrays, webdataset
from petriscope.data.sources.exports import FORMATS, damaged_files, find_export, list_images, read_export
from petriscope.data.sources.exports import SUFFIXES as EXPORTED
from petriscope.data.sources.exports.annotations import Export
from petriscope.data.sources.label_sets import MULTILABEL
from petriscope.data.sources.listing import FOUND_TABLES, PACKED, SUBMISSION, TABLES, USUAL, ImageFile, single_pages
from petriscope.data.sources.packed import is_archive
from petriscope.data.sources.pairs import Pairs, find_pairs
from petriscope.data.sources.spelling import spelled, split_of
from petriscope.data.walk import Folder, set_arrays_apart, walk

NAMED = {
    **{
        name: f"{found.about}; 28 x 28; downloaded once; {name}:64, :128 and :224 are larger"
        for name, found in medmnist.COLLECTIONS.items()
    },
    "cifar10": "ten kinds of things, 32 x 32 RGB, 60,000 images; downloaded once (170 MB)",
    "digits": "handwritten digits, 8 x 8 gray, 1,797 images; embedded",
    "synthetic-smear": "drawn blood cells of eight kinds, any number of images (synthetic-smear:COUNT); embedded",
    "synthetic-smear-other": "the same kinds of cell under another drawn microscope: fainter, larger, in bluish light; embedded",
    "synthetic-shapes": "drawn shapes of four kinds, several per image, any number of images (synthetic-shapes:COUNT); embedded",
    "synthetic-terrain": "drawn ground with masks of four classes, any number of images (synthetic-terrain:COUNT); embedded",
}
KINDS = (
    "an npz in MedMNIST's layout, a folder of class folders or a zip or tar of it, a cifar-10-batches-py folder, a CSV, "
    "JSON Lines or Parquet table with the columns path and label (or one of 0 and 1 per label), Parquet files with images, "
    "WebDataset shards, an HDF5 file or a Zarr folder, an npz or a folder of images (images) and masks, images with an export of "
    f"a labelling tool ({FORMATS}), an address of one of these such as s3://bucket/cells, or one of {', '.join(NAMED)}"
)
SHOWN = 3  # tables that a sentence lists
NAME_TABLE = "name it as the source"
MOST_TABLES = 10  # of a folder that are looked at
FIRST = 20  # rows of a table that are looked for, to tell whether it lists images that are there
LISTING = 2**26  # bytes of tables that nobody has named; larger ones hold measurements, and take long to read
SINGLE = (".png", ".jpg", ".jpeg", ".bmp")  # files without pages
SHEETS = (".xlsx", ".xls", ".ods", ".numbers")
UNSPLIT = "all"  # the name of the only image set of a source without splits
DRAWN = {
    "synthetic-smear": ("synthetic_smear", "read"),
    "synthetic-smear-other": ("synthetic_smear", "read_other"),
    "synthetic-shapes": ("synthetic_shapes", "read"),
    "synthetic-terrain": ("synthetic_terrain", "read"),
}


def read(source: str, section: DataSection, warnings: list[str] | None = None) -> dict[str, ImageSet]:
    """Read a source.

    Args:
        source: the name of a known data set, or a path; see `KINDS`.
        section: how to convert the images to one array.
        warnings: sentences for the user are added to it.

    Returns:
        ``train``, ``val`` and ``test``, those that the source has; or ``all`` for a source without splits.

    Raises:
        RequestError: there is no such source, or it is of an unknown kind.
        DataError: its data cannot be used.
    """
    notes: list[str] = [] if warnings is None else warnings
    if source.partition(":")[0] in NAMED and Path(source).exists():
        notes.append(
            f"{source} is the known data set of that name, not the file or folder; to read that, write ./{source}"
        )
    name, _, count = source.partition(":")
    if section.stream is not None and (streamed := _streamed(source, section, notes)) is not None:
        sets = streamed
    elif source == "cifar10" or name in medmnist.COLLECTIONS:
        sets = _module("known").read(source, section, notes)
    elif name in medmnist.VOLUMES and not Path(source).exists():
        raise RequestError(f"{name} has volumes rather than images, which are not supported")
    elif source == "digits":
        sets = _module("digits").read(section, notes)
    elif name in DRAWN:
        sets = _synthetic(source, count, section, notes)
    elif remote.is_address(source):
        with remote.local_copy(source, notes) as path:
            sets = _read_path(str(path), section, notes)
    else:
        sets = _read_path(source, section, notes)
    asked = [key for key in ("image", "label") if getattr(section, key) is not None]
    if asked and not _has_columns(source, section):
        notes += [f"data.{key} has no effect: {source} has no columns to choose from" for key in asked]
    if section.layout != "auto" and not remote.is_address(source) and not _has_arrays(user_path(source)):
        notes.append(f"data.layout has no effect: {source} is no HDF5 file or Zarr array")
    if section.pages != "auto" and (source.partition(":")[0] in NAMED or source.lower().endswith(".npz")):
        notes.append(f"data.pages has no effect: {source} has arrays, no files with pages")
    elif (section.pages != "auto" or section.projection) and not section.of_model and _have_one_page(sets):
        key = "projection" if section.pages == "auto" else "pages"
        notes.append(f"data.{key} has no effect: no file of {source} can have pages or slices")
    if section.crop is not None and all("image" not in part.columns for part in sets.values()):
        notes.append(f"data.crop has no effect: {source} has no boxes of a labelling tool")
    if section.group is not None and all(part.groups is None for part in sets.values()):
        if not section.of_model:
            raise RequestError(
                f"data.group is {section.group!r}, but {source} has no groups; it needs a folder of images (then it is a "
                "pattern for paths), a table (then it is a column), or an npz with arrays such as train_groups"
            )
        notes.append(
            f"{source} has no groups {section.group!r}, which data.group of the model names; all of its images count as "
            "independent"
        )
    return sets if section.block is None else _blocks(sets, section.block, source)


def _have_one_page(sets: dict[str, ImageSet]) -> bool:
    """Whether all images are files of formats without pages."""
    return all(str(id).lower().endswith(SINGLE) for part in sets.values() for id in part.ids.tolist())


def _streamed(source: str, section: DataSection, warnings: list[str]) -> dict[str, ImageSet] | None:
    """The shards of a source, which are read while training; None if it has none, which is said."""
    streams = _module("streams")
    try:
        sets: dict[str, ImageSet] = streams.read(source, section, warnings)
    except streams.NoShards as why:
        warnings.append(f"data.stream has no effect, and the images are read as without it: {why}")
        return None
    return sets


def _blocks(sets: dict[str, ImageSet], size: int, source: str) -> dict[str, ImageSet]:
    """Make groups of consecutive images, unless the source has the same groups."""
    out = {}
    for split, part in sets.items():
        blocks = np.char.add(f"{split} block ", (np.arange(len(part)) // size).astype(str))
        if part.groups is None:
            part = replace(part, groups=blocks)
        elif not _same_partition(part.groups, blocks):
            raise RequestError(
                f"data.block is {size}, but {source} defines which images belong together; remove data.block"
            )
        out[split] = part
    return out


def _same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    pairs = {*zip(one.tolist(), other.tolist(), strict=True)}
    return len(pairs) == len(set(one.tolist())) == len(set(other.tolist()))


def read_nonempty(source: str, section: DataSection, warnings: list[str]) -> dict[str, ImageSet]:
    """`read`, in the order train, val, test, and without empty splits.

    Raises:
        DataError: all splits are empty.
    """
    sets = read(source, section, warnings)
    sets = {name: sets[name] for name in (*SPLITS, UNSPLIT) if name in sets and len(sets[name])}
    if not sets:
        raise DataError(f"{source} has no images")
    return sets


def list_files(source: str, section: DataSection) -> list[ImageFile]:
    """The files of a source that is a folder, an archive or a table of images, readable or not. Other sources have none,
    and neither has one whose images are cut out of those in its files."""
    if source.partition(":")[0] in NAMED:
        return []
    if section.stream is not None and _module("streams").has_shards(source):  # which are not copied
        return []
    path = remote.copy(source) if remote.is_address(source) else user_path(source)
    if path.is_dir() and stored_arrays.is_zarr(path):
        return []
    if (table := _labels_in(path, section)) is not None:
        return _module("tables").list_files(table, section)
    if path.is_dir() or path.suffix.lower() in EXPORTED:
        found = [] if _are_batches(path) else _look(path, section, [])
        if isinstance(found, Found):
            return list_images(found.tree, found.export, section)
        if isinstance(found, Stored):
            return []
        if isinstance(found, Listed):
            return _module("tables").list_files(found.table, section)
        return found.files if isinstance(found, Pairs) else single_pages(found, section)
    if path.is_file() and is_archive(path):
        return _module("archives").list_files(path)
    return _module("tables").list_files(path, section) if _is_table(path, section) else []


def is_stored(folder: Path) -> bool:
    """Whether a folder has files that images are stored in, or is a Zarr array, and has no image files."""
    return stored_arrays.is_zarr(folder) or _stored(walk(folder, LeftOut()), LeftOut()) is not None


def list_paths(table: Path, section: DataSection, most: int | None = None) -> list[Path] | None:
    """The image files that a table lists, in its first ``most`` rows, with or without labels; None for a file that is no such
    table."""
    if not _is_table(table, section):
        return None
    found: list[Path] = _module("tables").list_paths(table, section, most)
    return found


def _is_table(path: Path, section: DataSection) -> bool:
    """Whether a file lists images, by its suffix, and does not hold them."""
    suffix = path.suffix.lower()
    return suffix in TABLES and not (suffix in parquet_images.SUFFIXES and parquet_images.holds_images(path, section))


def _read_path(source: str, section: DataSection, warnings: list[str]) -> dict[str, ImageSet]:
    path = user_path(source)
    if webdataset.is_pattern(source):
        return webdataset.read(webdataset.expand(source), source, section, warnings)
    if not path.exists():
        looked = "" if path.is_absolute() else f", looked for from the current folder, {Path.cwd()}"
        raise MissingSource(
            f"no data source {shown(source)}{looked}; {_near_paths(source, path)}\nA source is {KINDS}."
        )
    if _has_arrays(path):
        return stored_arrays.read(path, section, warnings)
    if (table := _labels_in(path, section)) is not None:
        return _module("tables").read(table, section, warnings)
    if path.is_dir():
        batches = _module("cifar_batches")
        for folder in (path, path / batches.FOLDER):
            if batches.is_batches(folder):
                return batches.read(folder, section, warnings)
        found = _look(path, section, warnings)
        if isinstance(found, Found):
            return read_export(found.tree, found.export, section, warnings)
        if isinstance(found, Stored):
            sets: dict[str, ImageSet] = _module(found.module).read(found.files, source, section, warnings, path)
            return sets
        if isinstance(found, Listed):
            return _module("tables").read(found.table, section, warnings)
        kind = "mask_folders" if isinstance(found, Pairs) else "folders"
        return _module(kind).read(path, found, section, warnings)
    if not path.is_file():  # a named pipe would be waited for without end
        raise RequestError(f"{source} is neither a file nor a folder.\nA source is {KINDS}.")
    if path.suffix.lower() in (".npz", ".npy"):
        return _module("npz").read(path, section, warnings)
    if path.suffix.lower() in parquet_images.SUFFIXES and parquet_images.holds_images(path, section):
        return parquet_images.read([path], source, section, warnings)
    if path.suffix.lower() in TABLES:
        return _module("tables").read(path, section, warnings)
    if path.suffix.lower() in EXPORTED:
        found = _found_around(path)
        return read_export(found.tree, found.export, section, warnings)
    if is_archive(path):
        return _module("archives").read(path, section, warnings)
    if path.suffix.lower() in PACKED:
        raise RequestError(
            f"{source} is packed in a way that is not read; unpack it and name the folder, or pack it as zip, tar or tar.gz"
        )
    if path.suffix.lower() in SHEETS:
        raise RequestError(f"{source} is a spreadsheet; save it as CSV in UTF-8")
    if path.suffix.lower() in SUFFIXES:
        raise RequestError(f"{source} is a single image; name the folder that has a folder for each class")
    raise RequestError(f"{source} is a file of an unknown kind ({path.suffix or 'no suffix'}).\nA source is {KINDS}.")


def _are_batches(folder: Path) -> bool:
    batches = _module("cifar_batches")
    return any(batches.is_batches(each) for each in (folder, folder / batches.FOLDER))


def _has_arrays(path: Path) -> bool:
    return (path.is_dir() and stored_arrays.is_zarr(path)) or path.suffix.lower() in stored_arrays.HDF5


def _has_columns(source: str, section: DataSection) -> bool:
    """Whether ``section.image`` and ``section.label`` choose among what a source has: columns of a table, arrays of a file, files
    and fields of samples."""
    if webdataset.is_pattern(source) or remote.is_address(source):
        return True
    if source.partition(":")[0] in NAMED:
        return False
    path = user_path(source)
    if path.suffix.lower() in TABLES or _has_arrays(path) or _labels_in(path, section) is not None:
        return True
    if path.is_dir():
        return not _are_batches(path) and isinstance(_look(path, section, []), Stored | Listed)
    return is_archive(path) and bool(_module("archives").is_dataset(path))


def _labels_in(folder: Path, section: DataSection) -> Path | None:
    """The table with the labels of a folder of images, where the recipe says that images have any number of labels, which folders
    of classes cannot show; None for what is no folder, or another task.

    Raises:
        RequestError: there is no table in the folder, or there are several.
    """
    if section.task != MULTILABEL or not folder.is_dir() or stored_arrays.is_zarr(folder):
        return None
    tables = _tables_in(folder)
    if not tables and (table := _listing_of_splits(walk(folder, LeftOut()), section)) is not None:
        return table
    if len(tables) != 1:
        found = (
            f"{len(tables)} tables, such as {tables[0].name}; name one of them as the source" if tables else "no table"
        )
        raise RequestError(
            f"data.task is {MULTILABEL}, and the folder {folder} has {found}. The labels of a folder of images are read from a "
            "table in it (CSV, JSON Lines or Parquet) with the columns path and label"
        )
    return tables[0]


def _tables_in(folder: Path) -> list[Path]:
    return sorted(
        each
        for each in folder.iterdir()
        if each.suffix.lower() in FOUND_TABLES and not SUBMISSION.fullmatch(each.stem) and each.is_file()
    )


@dataclass(frozen=True)
class Found:
    """A folder with an export of a labelling tool."""

    tree: Folder
    export: Export


@dataclass(frozen=True)
class Stored:
    """A folder with files that images are stored in.

    Args:
        module: that reads them.
        files: with images.
    """

    module: str
    files: list[Path]


@dataclass(frozen=True)
class Listed:
    """A table in a folder of images, which lists them."""

    table: Path


def _listings(folder: Path, section: DataSection) -> list[Path]:
    """The tables in a folder that list image files that are there; one that is called labels or metadata alone, if it does."""
    tables, size = _tables_in(folder), 0
    sizes = {each: each.stat().st_size for each in tables}
    found = []
    for each in sorted(tables, key=lambda each: (each.stem.lower() not in USUAL, sizes[each]))[:MOST_TABLES]:
        size += sizes[each]
        if size <= LISTING and _lists_images(each, section):
            found.append(each)
    usual = [each for each in found if each.stem.lower() in USUAL]
    return usual if len(usual) == 1 else found


def _listing_of_splits(tree: Folder, section: DataSection) -> Path | None:
    """What the only table in each of the split folders would be called beside them, if all have one of the same name."""
    splits = [folder for folder in tree.filled if split_of(folder.name)]
    found = [_tables_in(folder.path) for folder in splits]
    if not found or any(len(each) != 1 for each in found) or len({each[0].name for each in found}) > 1:
        return None
    table = tree.path / found[0][0].name
    return table if _lists_images(table, section) else None


def _lists_images(table: Path, section: DataSection) -> bool:
    try:
        paths = list_paths(table, section, FIRST)
    except PetriscopeError:  # another kind of table
        return False
    return bool(paths) and any(path.is_file() for path in paths or ())


def _stored(tree: Folder, left_out: LeftOut) -> Stored | None:
    """The files that images are stored in, if a folder has some and no image files."""
    names = [name.lower() for part in tree.all() for name in part.others]
    shards, tables = (
        any(name.endswith(ends) for name in names) for ends in (webdataset.SHARDS, parquet_images.SUFFIXES)
    )
    if not (shards or tables):
        return None
    set_arrays_apart(tree, shards=True)
    if tree.count:
        return None
    if shards:
        return Stored("webdataset", webdataset.find_shards(tree, left_out))
    return Stored("parquet_images", parquet_images.find_tables(tree, left_out))


@uncollected()
def _look(path: Path, section: DataSection, warnings: list[str]) -> Pairs | list[ImageFile] | Found | Stored | Listed:
    """The images of a folder, with their masks, what was drawn in them, or their classes. A file that is named is an export. A
    table is read where there are no class folders, or a column is asked for.

    An export is looked for before class folders, since its images may lie in folders that are no classes; but after mask files,
    unless ``section.crop`` asks for boxes.
    """
    if path.is_file():
        return _found_around(path)
    left_out, notes = LeftOut(), list[str]()
    tree = walk(path, left_out)
    if (stored := _stored(tree, left_out)) is not None:
        warnings += left_out.sentences(path)
        return stored
    pairs = find_pairs(tree, left_out, notes) if section.crop is None else None
    if pairs is None and (export := find_export(tree)) is not None:
        warnings += left_out.sentences(path)
        return Found(tree, export)
    if pairs is None:
        set_arrays_apart(tree)
    try:
        if section.crop is not None:
            pairs = find_pairs(tree, left_out, notes)
        found = pairs or _module("folders").find_images(tree, left_out, notes)
    except DataError as error:
        tables = _listings(path, section) if section.crop is None else []
        if len(tables) == 1:
            warnings.append(f"{path} has no class folders, so {tables[0].name} in it was read, which lists images")
            return Listed(tables[0])
        if section.crop is None and not tables and (table := _listing_of_splits(tree, section)) is not None:
            warnings.append(
                f"{path} has no class folders, so {table.name} in its split folders was read, which lists images"
            )
            return Listed(table)
        raise DataError(". ".join([str(error), *damaged_files(tree)])) from None
    if not isinstance(found, Pairs) and section.crop is None and (tables := _listings(path, section)):
        asked = {name for name in (section.image, section.label) if name is not None}
        one = len({file.label for file in found}) == 1 and not section.of_model
        if one and len(tables) == 1 and _module("tables").has_labels(tables[0], section):
            warnings.append(f"{path} has one class folder, so {tables[0].name} in it was read, which lists images")
            return Listed(tables[0])
        having = [each for each in tables if asked and _module("tables").has_columns(each, asked)]
        if not section.of_model and len(tables) == 1 and asked:
            having = tables
        if len(having) == 1:
            warnings.append(
                f"{path}: {having[0].name} in it was read, which lists images, since data.image or data.label is set"
            )
            return Listed(having[0])
        listed = " and ".join(each.name for each in tables[:SHOWN])
        if len(tables) == 1:
            said = "lists images, and was not read, since folders were read as classes; if it has the labels"
        else:
            said = "list images, and were not read, since folders were read as classes; if one of them has the labels"
        notes.append(f"{listed} in {path} {said}, {NAME_TABLE}")
    warnings += [*notes, *left_out.sentences(path)]
    return found


def _found_around(path: Path) -> Found:
    """The export in a file, with the folder of its images: that of the file; or the one around, if that is called annotations or
    the like and has no images."""
    folder = path.parent.resolve()
    path = folder / path.name
    tree = walk(folder, LeftOut())
    if not tree.count and spelled(folder.name).role == "masks":
        folder = folder.parent
        tree = walk(folder, LeftOut())
    if not tree.count:
        raise DataError(f"there is no image beside {path}, which is read as an export of a labelling tool")
    export = find_export(tree, path.relative_to(folder).as_posix())
    assert export is not None  # or else it is refused
    return Found(tree, export)


def _synthetic(source: str, count: str, section: DataSection, warnings: list[str]) -> dict[str, ImageSet]:
    from petriscope.data.sources import arrays

    name = source.partition(":")[0]
    module, function = DRAWN[name]
    draw = getattr(_module(module), function)
    if source == name:
        sets = draw(section)
    elif count.isascii() and count.isdigit() and 0 < int(count) <= 10_000_000:
        sets = draw(section, int(count))
    else:
        raise RequestError(f"{source!r}: the count after {name}: must be a whole number from 1 to 10,000,000")
    return arrays.conform(sets, section, source, warnings)


def _near_paths(source: str, path: Path) -> str:
    try:
        beside = [str(Path(source).parent / entry.name) for entry in path.parent.iterdir()]
    except OSError:
        beside = []
    close = near(source, [*NAMED, *beside])
    return close if close.startswith("did you mean") else near(source, NAMED)


def _module(name: str):  # type: ignore[no-untyped-def]
    # Imported when used, so that a source does not wait for the libraries of another.
    return import_module(f"petriscope.data.sources.{name}")
