"""Plain PNG files: 8 bits of gray or RGB, from top to bottom, and nothing that says more of the pixels.

Most small images are such files. Pillow spends more time on looking for everything else that a PNG file may have than on
decoding one of 28 x 28 pixels. What is read here goes through the same decoder of Pillow; all else is left to `Image.open`.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from pathlib import Path

from PIL import Image

from petriscope.data.in_memory import AnyFile, InMemory

MOST_BYTES = 1 << 20  # of a file; with larger ones, nothing is gained
FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a pipe is not waited for
SIGNATURE = b"\x89PNG\r\n\x1a\n"
BEGIN = SIGNATURE + struct.pack(">I4s", 13, b"IHDR")
MODES = {0: "L", 2: "RGB"}  # of Pillow, by the color type of PNG
SILENT = frozenset([b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"tIME"])  # chunks that change nothing of what is read


def read_plain(path: AnyFile, wanted: str, most_pixels: int) -> Image.Image | None:
    """The image of a plain PNG file, decoded. None: it is another file, has more pixels or is damaged, or its name does not end
    with ``.png``; then Pillow finds out what it is, and what is wrong.

    Args:
        path: files on the disk and in memory are read, no others.
        wanted: the mode that it is turned into: one of `MODES`, or empty. Colors that would be lost are left to others.
    """
    if isinstance(path, InMemory):
        content = path.content if len(path.content) <= MOST_BYTES else b""
    else:
        content = _content(path) if isinstance(path, Path) and str(path).lower().endswith(".png") else b""
    if not content.startswith(BEGIN):
        return None
    try:
        width, height, *form = struct.unpack_from(">IIBBBBB", content, len(BEGIN))
        bits, kind, *rest = form
        if bits != 8 or kind not in MODES or any(rest) or not 0 < width * height <= most_pixels:
            return None
        mode = MODES[kind]
        if wanted not in ("", mode, "RGB"):
            return None
        packed = _packed(content)
        return None if packed is None else Image.frombytes(mode, (width, height), packed, "zip", mode, 0)
    except (struct.error, ValueError):
        return None


def _content(path: Path) -> bytes:
    """Of a regular file of up to `MOST_BYTES`, else nothing."""
    try:
        file = os.open(path, FLAGS)
    except (OSError, ValueError):
        return b""
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_BYTES:
            return b""
        content = os.read(file, found.st_size)
    except OSError:
        return b""
    finally:
        os.close(file)
    return content if len(content) == found.st_size else b""


def _packed(content: bytes) -> bytes | None:
    """The compressed pixels; None: a checksum is wrong, or there are chunks that say more.

    Raises:
        struct.error: the file ends before its last chunk does.
    """
    parts = list[bytes]()
    at, before = len(SIGNATURE), b""
    while True:
        size, kind = struct.unpack_from(">I4s", content, at)
        start, at = at + 8, at + 12 + size
        if struct.unpack_from(">I", content, at - 4)[0] != zlib.crc32(content[start - 4 : at - 4]):
            return None
        if kind == b"IDAT":
            if parts and before != kind:
                return None
            parts.append(content[start : at - 4])
        elif kind == b"IEND":
            return b"".join(parts) if parts else None
        elif kind not in SILENT and start != len(BEGIN):
            return None
        before = kind
