"""Plain PNG files are read as Pillow reads them, and all others are left to it."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from petriscope.data import decode
from petriscope.data.contents import Content
from petriscope.data.decode import MAX_PIXELS, Channels, Form, Unreadable, read_image
from petriscope.data.in_memory import InMemory
from petriscope.data.plain_png import MOST_BYTES, read_plain

random = np.random.default_rng(0)


def png(image: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    return out.getvalue()


def picture(mode: str, width: int, height: int) -> Image.Image:
    """Smooth, with noise, so that rows are filtered in all ways."""
    shade = np.add.outer(np.arange(height) * 5, np.arange(width) * 3) % 256
    bands = [(shade + random.integers(0, 9, shade.shape) + 40 * k).clip(0, 255) for k in range(len(mode))]
    return Image.merge(mode, [Image.fromarray(band.astype(np.uint8)) for band in bands])


def with_chunk(content: bytes, kind: bytes, data: bytes) -> bytes:
    """With one more chunk before the pixels."""
    at = content.index(b"IDAT") - 4
    return content[:at] + chunk(kind, data) + content[at:]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def mended(content: bytes) -> bytes:
    """With the checksums that the content has."""
    out, at = content[:8], 8
    while at + 12 <= len(content):
        size = struct.unpack_from(">I", content, at)[0]
        out += chunk(content[at + 4 : at + 8], content[at + 8 : at + 8 + size])
        at += 12 + size
    return out


def outcome(content: bytes, channels: Channels) -> tuple[bytes, tuple[int, ...], Content] | str:
    try:
        array, found = read_image(InMemory("cell.png", content), None, Form(channels=channels))
    except Unreadable as error:
        return str(error)
    return array.tobytes(), array.shape, found


@pytest.mark.parametrize("level", [0, 1, 6, 9])
@pytest.mark.parametrize(("mode", "width", "height"), [("RGB", 28, 28), ("L", 28, 28), ("RGB", 300, 200), ("L", 1, 7)])
def test_read_as_pillow_reads_it(
    mode: str, width: int, height: int, level: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = with_chunk(png(picture(mode, width, height), compress_level=level), b"pHYs", bytes(9))
    path = tmp_path / "cell.PNG"
    path.write_bytes(content)
    for file in (InMemory("cell.png", content), path):
        found = read_plain(file, "", MAX_PIXELS)
        assert found is not None
        assert found.mode == mode and (np.asarray(found) == np.asarray(Image.open(io.BytesIO(content)))).all()
    given: list[Channels] = ["auto", "gray", "rgb"]
    quickly = [outcome(content, channels) for channels in given]
    monkeypatch.setattr(decode, "read_plain", lambda *_: None)
    assert [outcome(content, channels) for channels in given] == quickly


def test_files_that_are_not_plain_are_left_to_pillow(tmp_path: Path) -> None:
    rgb, words = picture("RGB", 9, 8), PngImagePlugin.PngInfo()
    words.add_text("Description", "cells")
    content = png(rgb)
    turned = Image.Exif()
    turned[0x0112] = 6
    others = {
        "opacity": png(picture("RGBA", 9, 8)),
        "palette": png(rgb.quantize(9)),
        "16 bits": png(Image.fromarray(np.full((8, 9), 999, np.uint16))),
        "1 bit": png(Image.new("1", (9, 8))),
        "one transparent color": png(rgb, transparency=(0, 0, 0)),
        "turned": png(rgb, exif=turned),
        "frames": png(rgb, save_all=True, append_images=[picture("RGB", 9, 8)]),
        "words": png(rgb, pnginfo=words),
        "a second header": with_chunk(content, b"IHDR", content[16:29]),
        "interlaced": mended(content[:28] + b"\x01" + content[29:]),
        "no pixels": mended(content[:16] + bytes(4) + content[20:]),
        "a wrong checksum": content[:-20] + bytes([content[-20] ^ 1]) + content[-19:],
        "cut": content[:-13],
        "a header alone": content[:20],
        "another format": b"GIF89a",
        "large": png(Image.fromarray(random.integers(0, 256, (700, 700, 3), dtype=np.uint8))),
    }
    assert len(others["large"]) > MOST_BYTES
    for what, each in others.items():
        assert read_plain(InMemory("cell.png", each), "", MAX_PIXELS) is None, what
    assert read_plain(InMemory("cell.png", content), "", 71) is None  # more pixels than are allowed
    (tmp_path / "cell.data").write_bytes(content)
    for name in ("cell.data", "missing.png", "."):
        assert read_plain(tmp_path / name, "", MAX_PIXELS) is None
    os.mkfifo(tmp_path / "pipe.png")
    assert read_plain(tmp_path / "pipe.png", "", MAX_PIXELS) is None


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_read_or_refused_as_by_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    files, plain = list[bytes](), 0
    for number in range(600):
        content = bytearray(png(picture("RGB" if number % 2 else "L", 12, 11), compress_level=number % 10))
        for _ in range(1 + number % 3):
            content[random.integers(8, len(content))] = random.integers(0, 256)
        files.append(mended(bytes(content)))
        plain += read_plain(InMemory("cell.png", files[-1]), "", MAX_PIXELS) is not None
    quickly = [outcome(content, "rgb") for content in files]
    monkeypatch.setattr(decode, "read_plain", lambda *_: None)
    assert [outcome(content, "rgb") for content in files] == quickly
    assert plain > 20  # of those that are damaged, some can be decoded all the same
