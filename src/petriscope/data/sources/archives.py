"""A zip or tar archive of class folders, read as the folder would be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from petriscope.core.errors import DataError
from petriscope.core.files import parsing
from petriscope.core.recipe import DataSection
from petriscope.data.imageset import ImageSet
from petriscope.data.omissions import LeftOut
from petriscope.data.sources import folders, webdataset
from petriscope.data.sources.listing import ImageFile
from petriscope.data.sources.packed import Archive, Members, open_archive
from petriscope.data.sources.pairs import find_pairs
from petriscope.data.walk import set_arrays_apart, tree_of


@dataclass(frozen=True)
class Found:
    """The images of an archive.

    Args:
        files: with their classes and splits.
        members: what is known of these files.
    """

    files: list[ImageFile]
    members: Members


def list_files(path: Path) -> list[ImageFile]:
    """The images of an archive of class folders, readable or not; none if it is a shard of a WebDataset."""
    archive = open_archive(path)
    return [] if _is_dataset(archive) else _look(archive, []).files


def is_dataset(path: Path) -> bool:
    """Whether an archive is a shard of a WebDataset."""
    return _is_dataset(open_archive(path))


def _is_dataset(archive: Archive) -> bool:
    return archive.path.name.lower().endswith(webdataset.SHARDS) and webdataset.holds_samples(archive.listing)


def _look(archive: Archive, warnings: list[str]) -> Found:
    path = archive.path
    with parsing(path, kind=DataError):
        left_out, notes = LeftOut(), list[str]()
        places = {path / place.name: place for place in archive.listing.files}
        tree = tree_of(path, (place.name for place in archive.listing.files), archive.listing.folders, left_out)
        if find_pairs(tree, left_out, notes):
            raise DataError(f"{path} has images and masks, which are read from folders alone; unpack it")
        set_arrays_apart(tree)
        found = folders.find_images(tree, left_out, notes)
    warnings += [*notes, *left_out.sentences(path)]
    files = [replace(file, place=archive.file(places[Path(str(file.path))])) for file in found]
    return Found(
        files, Members([f"{archive.digest} {places[Path(str(file.path))].at}" for file in found], archive.found)
    )


def read(path: Path, section: DataSection, warnings: list[str]) -> dict[str, ImageSet]:
    """Read images from class folders in an archive. Their ids are their paths in it.

    Raises:
        DataError: as `petriscope.data.sources.packed.open_archive`, and as `petriscope.data.sources.folders`; the message names
            the archive.
    """
    if _is_dataset(archive := open_archive(path)):
        return webdataset.read([path], str(path), section, warnings)
    found = _look(archive, warnings)
    with parsing(path, kind=DataError):
        return folders.read(path, found.files, section, warnings, found.members)
