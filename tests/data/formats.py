"""The same twelve images in every format, written by the library of the format."""

from __future__ import annotations

import io
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from small_sources import some_images

SPLITS = ("train",) * 6 + ("val",) * 3 + ("test",) * 3
LABELS = tuple(("cat", "dog")[number % 2] for number in range(12))
GROUPS = tuple(f"slide{number // 3}" for number in range(12))
IDS = tuple(f"{SPLITS[n]}/{LABELS[n]}/{GROUPS[n]}-{n:02d}.png" for n in range(12))


def pixels() -> np.ndarray:
    """uint8 [12, 8, 9, 3]."""
    return some_images(12, seed=7)


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


@dataclass(frozen=True)
class Format:
    """A way of storing the images.

    Args:
        write: writes them into a folder and returns the source.
        file: the file that tests damage, below the folder.
        needs: libraries without which tests are skipped.
        ids: of the images in the format; empty: it has none.
        options: of ``data``, to read them.
        group: ``data.group`` that finds the groups; None: they are found without it, or there are none.
        grouped: whether the format has groups.
        classes: in the format.
    """

    write: Callable[[Path], str]
    file: str
    needs: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    group: str | None = None
    grouped: bool = True
    classes: tuple[str, ...] = ("cat", "dog")


def _members() -> list[tuple[str, bytes]]:
    return list(zip(IDS, map(png, pixels()), strict=True))


def write_folder(folder: Path) -> str:
    for name, data in _members():
        (folder / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "set" / name).write_bytes(data)
    return str(folder / "set")


def write_zip(folder: Path) -> str:
    with zipfile.ZipFile(folder / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in _members():
            archive.writestr(name, data)
    return str(folder / "set.zip")


def write_tar(folder: Path, name: str = "set.tar") -> str:
    with tarfile.open(folder / name, "w:gz" if name.endswith("gz") else "w") as archive:
        for member, data in _members():
            info = tarfile.TarInfo(f"./{member}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(folder / name)


PATHS = {"ids": IDS, "group": r"(slide\d)"}
FORMATS: dict[str, Format] = {
    "folder": Format(write_folder, "set/" + IDS[0], **PATHS),
    "zip": Format(write_zip, "set.zip", **PATHS),
    "tar": Format(write_tar, "set.tar", **PATHS),
    "tar.gz": Format(lambda folder: write_tar(folder, "set.tar.gz"), "set.tar.gz", **PATHS),
    "tgz": Format(lambda folder: write_tar(folder, "set.tgz"), "set.tgz", **PATHS),
}


def pack_folder(folder: Path, kind: str) -> Path:
    """A folder packed by the standard library, with entries for its folders."""
    return Path(shutil.make_archive(str(folder.with_name(f"{folder.name}-packed")), kind, folder))
