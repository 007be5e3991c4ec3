"""Tar shards of a WebDataset, written by the standard library."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def write_shards(folder: Path, split: str, images: np.ndarray, labels: np.ndarray, each: int = 40) -> Path:
    """Images, uint8 [N, H, W, 3], and their labels, int [N], in shards ``split-000.tar`` and so on."""
    folder.mkdir(exist_ok=True)
    for start in range(0, len(images), each):
        with tarfile.open(folder / f"{split}-{start:03d}.tar", "w") as archive:
            for number in range(start, min(start + each, len(images))):
                content = io.BytesIO()
                Image.fromarray(images[number]).save(content, "PNG")
                for suffix, data in (("png", content.getvalue()), ("cls", b"%d" % labels[number])):
                    info = tarfile.TarInfo(f"{split}{number:03d}.{suffix}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return folder
