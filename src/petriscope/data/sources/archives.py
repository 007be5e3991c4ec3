"""A zip or tar archive of class folders, read as the folder would be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from petriscope.core.errors import DataError
from petriscope.core.files import parsing
from petriscope.core.recipe import DataSection
from petriscope.data.imageset import ImageSet
from petriscope.data.sources import folders
from petriscope.data.sources.listing import ImageFile
from petriscope.data.sources.packed import Archive, Members
from petriscope.data.sources.pairs import find_pairs
from petriscope.data.walk import LeftOut, tree_of


@dataclass(frozen=True)
class Found:
    """The images of an archive.

    Args:
        files: with their classes and splits.
        members: what is known of these files.
    """

    files: list[ImageFile]
    members: Members


def look(path: Path, warnings: list[str]) -> Found:
    """The images of an archive of class folders, readable or not.

    Raises:
        DataError: as `Archive` and `petriscope.data.sources.folders.find_images`.
    """
    archive = Archive(path)
    with parsing(path, kind=DataError):
        left_out, notes = LeftOut(), list[str]()
        places = {path / place.name: place for place in archive.listing.files}
        tree = tree_of(path, (place.name for place in archive.listing.files), archive.listing.folders, left_out)
        if find_pairs(tree, left_out, notes):
            raise DataError(f"{path} has images and masks, which are read from folders alone; unpack it")
        found = folders.find_images(tree, left_out, notes)
    warnings += [*notes, *left_out.sentences(path)]
    files = [replace(file, path=archive.file(places[Path(str(file.path))])) for file in found]
    digest = archive.digests.values[0]
    return Found(files, Members([f"{digest} {places[Path(str(file.path))].at}" for file in found], [archive]))


def read(path: Path, section: DataSection, warnings: list[str]) -> dict[str, ImageSet]:
    """Read images from class folders in an archive. Their ids are their paths in it.

    Raises:
        DataError: as `look`, and as `petriscope.data.sources.folders.read`; the message names the archive.
    """
    found = look(path, warnings)
    with parsing(path, kind=DataError):
        return folders.read(path, found.files, section, warnings, found.members)
