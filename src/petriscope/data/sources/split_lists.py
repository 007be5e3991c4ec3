"""Lists of images per split, as Pascal VOC has them: ``ImageSets/Main/train.txt`` and others, a stem per line."""

from __future__ import annotations

from petriscope.core.errors import DataError
from petriscope.core.files import read_text
from petriscope.data.walk import Folder

HOME = "ImageSets"
LISTS = {
    "train": "train",
    "val": "val",
    "test": "test",
    "trainval": "train",
}  # the last is for images in none of the others
MAX_BYTES = 2**28  # of a list


def list_files(tree: Folder) -> set[str]:
    """The ids of the files in folders of lists."""
    return {part.id_of(name) for part in tree.all() if HOME in part.id.split("/") for name in part.others}


def split_lists(tree: Folder, kind: str) -> dict[str, str]:
    """The split of each image, by the stem of its file, as the lists in ``ImageSets/kind`` say it.

    Raises:
        DataError: an image is in two splits.
    """
    out: dict[str, str] = {}
    for folder in tree.all():
        if folder.path.parts[-2:] != (HOME, kind):
            continue
        for stem, split in LISTS.items():
            if f"{stem}.txt" not in folder.others:
                continue
            path = folder.path / f"{stem}.txt"
            for line in read_text(path, MAX_BYTES, "a list of images").splitlines():
                if not (words := line.split()):
                    continue
                if stem != "trainval" and out.get(words[0], split) != split:
                    raise DataError(f"{path} lists {words[0]}, which is in {out[words[0]]} too; keep one of them")
                out.setdefault(words[0], split)
    return out
