"""Sources of pictures: what the user names, to image sets. One module a kind of source."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from petriscope.data.imageset import SPLITS, ImageSet
from petriscope.data.sources.files import PictureFile
from petriscope.errors import DataError, RequestError, near
from petriscope.recipe import DataSection

NAMED = {
    "bloodmnist": "eight kinds of blood cell, 28 x 28 RGB, 17,092 pictures; downloaded once (34 MB)",
    "cifar10": "ten kinds of things, 32 x 32 RGB, 60,000 pictures; downloaded once (170 MB)",
    "digits": "handwritten digits, 8 x 8 gray, 1,797 pictures; embedded",
    "synthetic-smear": "drawn blood cells of eight kinds, as many as wanted (synthetic-smear:COUNT); embedded",
}
KINDS = (
    "an npz in MedMNIST's layout, a folder of class folders, a cifar-10-batches-py folder, a CSV or Parquet table "
    f"with the columns path and label, or one of {', '.join(NAMED)}"
)
PILE = "all"  # what the pictures of a source without splits are called
TABLES = (".csv", ".parquet", ".pq")


def read(source: str, section: DataSection, warnings: list[str] | None = None) -> dict[str, ImageSet]:
    """Read a source.

    Args:
        source: the name of a known set, or a path; see `KINDS`.
        section: how pictures become one array.
        warnings: sentences that the user should know are added to it.

    Returns:
        ``train``, ``val`` and ``test``, as many as the source has; or ``all``, one pile.

    Raises:
        RequestError: there is no such source, or it is of no known kind.
        DataError: its data cannot be used.
    """
    notes: list[str] = [] if warnings is None else warnings
    name, _, count = source.partition(":")
    if source in ("bloodmnist", "cifar10"):
        sets = _module("known").read(source, section, notes)
    elif source == "digits":
        sets = _module("digits").read(section, notes)
    elif name == "synthetic-smear":
        sets = _synthetic(source, count, section, notes)
    else:
        sets = _read_path(source, section, notes)
    if section.group is not None and all(part.groups is None for part in sets.values()):
        raise RequestError(
            f"data.group is {section.group!r}, but {source} has no groups: it takes a folder of pictures (a pattern "
            "for paths), a table (a column), or an npz with arrays such as train_groups"
        )
    return sets


def read_nonempty(source: str, section: DataSection, warnings: list[str]) -> dict[str, ImageSet]:
    """As `read`, in the order train, val, test, without splits that have no pictures.

    Raises:
        DataError: nothing is left.
    """
    sets = read(source, section, warnings)
    sets = {name: sets[name] for name in (*SPLITS, PILE) if name in sets and len(sets[name])}
    if not sets:
        raise DataError(f"{source} has no pictures")
    return sets


def list_files(source: str) -> list[PictureFile]:
    """The files of a source that is a folder or a table of pictures, readable or not; of any other, none."""
    path = Path(source).expanduser()
    if source.partition(":")[0] in NAMED:
        return []
    if path.is_dir():
        batches = _module("cifar_batches")
        is_batches = any(batches.is_batches(folder) for folder in (path, path / batches.FOLDER))
        return [] if is_batches else _module("folders").list_files(path)
    return _module("tables").list_files(path) if path.suffix.lower() in TABLES else []


def _read_path(source: str, section: DataSection, warnings: list[str]) -> dict[str, ImageSet]:
    path = Path(source).expanduser()
    if not path.exists():
        raise RequestError(f"no data source {source!r}; {_near_paths(source, path)}\nA source is {KINDS}.")
    if path.is_dir():
        batches = _module("cifar_batches")
        for folder in (path, path / batches.FOLDER):
            if batches.is_batches(folder):
                return batches.read(folder, section, warnings)
        return _module("folders").read(path, section, warnings)
    if path.suffix.lower() == ".npz":
        return _module("npz").read(path, section, warnings)
    if path.suffix.lower() in TABLES:
        return _module("tables").read(path, section, warnings)
    raise RequestError(f"{source} is a file of no known kind ({path.suffix or 'no suffix'}).\nA source is {KINDS}.")


def _synthetic(source: str, count: str, section: DataSection, warnings: list[str]) -> dict[str, ImageSet]:
    from petriscope.data.sources import arrays

    smear = _module("synthetic_smear")
    if source == "synthetic-smear":
        sets = smear.read(section)
    elif count.isascii() and count.isdigit() and 0 < int(count) <= 10_000_000:
        sets = smear.read(section, int(count))
    else:
        raise RequestError(f"{source!r}: the count after synthetic-smear: is a whole number from 1 to 10,000,000")
    return arrays.conform(sets, section, source, warnings)


def _near_paths(source: str, path: Path) -> str:
    try:
        beside = [str(Path(source).parent / entry.name) for entry in path.parent.iterdir()]
    except OSError:
        beside = []
    close = near(source, [*NAMED, *beside])
    return close if close.startswith("did you mean") else near(source, NAMED)


def _module(name: str):  # type: ignore[no-untyped-def]
    # Imported when used: a source should not wait for the libraries of another.
    return import_module(f"petriscope.data.sources.{name}")
