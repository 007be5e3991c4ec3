"""Find the image files that an export names: its names may be of another machine, or of another folder."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections import defaultdict
from pathlib import Path
from urllib.parse import unquote

from petriscope.core.errors import shortened
from petriscope.data.sources.exports.annotations import AMBIGUOUS, NO_IMAGE, Fault, Labeled
from petriscope.data.sources.spelling import spelled, split_of_path
from petriscope.data.walk import Folder, stem_of

_UPLOAD = re.compile(r"[0-9a-f]{8}-(.+)")  # what Label Studio puts before the name of a file


class Finder:
    """The image files of a source by their names. No name leads out of the source.

    Args:
        tree: the source.

    Attributes:
        elsewhere: how many images were found by their names alone, and the first name.
    """

    def __init__(self, tree: Folder) -> None:
        self.paths: dict[str, Path] = {}
        self.keys: dict[str, str] = {}
        self.by_name: dict[str, list[str]] = defaultdict(list)
        self.by_stem: dict[str, list[str]] = defaultdict(list)
        self.elsewhere: tuple[int, str] = (0, "")
        for folder in tree.all():
            for name in folder.images:
                id = folder.id_of(name)
                self.paths[id] = folder.path / name
                self.keys[_key(id)] = id
                self.by_name[_key(name)].append(id)
                self.by_stem[_key(stem_of(name))].append(id)

    def find(self, image: Labeled) -> str:
        """The id of the file of an image.

        Raises:
            Fault: there is none; or several, and it is not clear which is meant.
        """
        several = None
        for name in image.names:
            try:
                if (id := self._find(name, image.near, image.split)) is not None:
                    return id
            except Fault as fault:
                several = several or fault
        raise several or Fault(NO_IMAGE, shortened(image.names[0]))

    def _find(self, name: str, near: str, split: str | None) -> str | None:
        asked = name.replace("\\", "/")
        for place in (posixpath.normpath(posixpath.join(near, asked)), posixpath.normpath(asked)):
            if (id := self.keys.get(_key(place))) is not None:
                return id
        parts = [_key(part) for part in asked.split("/") if part not in ("", ".", "..")]
        if not parts:
            return None
        found = self.by_name.get(parts[-1])
        if not found and (upload := _UPLOAD.fullmatch(parts[-1])):
            found = self.by_name.get(upload[1])
        if not found:
            found = self.by_stem.get(parts[-1] if "." not in parts[-1] else stem_of(parts[-1]))
        if not found:
            return None
        id = _nearest(found, parts, split)
        if id is None:
            raise Fault(AMBIGUOUS, f"{shortened(name)}: {found[0]} and {found[1]}")
        if _is_foreign(asked):
            count, first = self.elsewhere
            self.elsewhere = count + 1, first or name
        return id


def name_in_url(place: str) -> str:
    """The path of a file in a URL: of ``/data/local-files/?d=a/b.png``, ``a/b.png``."""
    path, _, query = place.partition("?")
    for part in query.split("&"):
        if part.startswith("d="):
            return unquote(part[2:])
    return unquote(path.split("://", 1)[-1])


def _nearest(found: list[str], parts: list[str], split: str | None) -> str | None:
    """The one of several files of a name whose folders are most like those asked for; None if that is not one."""
    if len(found) == 1:
        return found[0]
    if split is not None and (same := [id for id in found if split_of_path(id) == split]):
        found = same

    def common(id: str) -> int:
        have = _key(id).split("/")
        return next((i for i, (a, b) in enumerate(zip(reversed(have), reversed(parts), strict=False)) if a != b), 99)

    best = max(map(common, found))
    left = [id for id in found if common(id) == best]
    if len(left) > 1:  # a mask may be called as its image is
        left = [id for id in left if all(spelled(part).role != "masks" for part in id.split("/")[:-1])]
    return left[0] if len(left) == 1 else None


def _is_foreign(name: str) -> bool:
    """Whether a name is that of a place outside the source."""
    return name.startswith("/") or ".." in name.split("/") or re.match("[A-Za-z]:/", name) is not None


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name)
