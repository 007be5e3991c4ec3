"""Image files byte by byte, for what Pillow does not write."""

from __future__ import annotations

import struct
import zlib

import numpy as np


def png(image: np.ndarray, key: tuple[int, ...] | None = None) -> bytes:
    """A PNG file with 16 bits per channel; its rows take turns with the filters none, sub, up and average.

    Args:
        image: uint16 [H, W, 1 (gray), 2 (gray, alpha), 3 or 4].
        key: the color that is transparent.
    """
    height, width, channels = image.shape
    rows = image.astype(">u2").reshape(height, -1).view(np.uint8).astype(int)
    step, before, raw = 2 * channels, np.zeros(rows.shape[1], dtype=int), b""
    for number, row in enumerate(rows):
        left = np.concatenate([np.zeros(step, dtype=int), row[:-step]])
        change = (0, left, before, (left + before) // 2)[number % 4]
        raw += bytes([number % 4]) + ((row - change) % 256).astype(np.uint8).tobytes()
        before = row
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    clear = b"" if key is None else _chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + clear
        + _chunk(b"IDAT", zlib.compress(raw))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(
    image: np.ndarray,
    order: str = "<",
    packed: bool = False,
    planar: bool = False,
    photometric: int | None = None,
    extra: tuple[int, ...] = (),
    depth: int = 1,
    orientation: int = 1,
) -> bytes:
    """A TIFF file of any type of numbers.

    Args:
        image: [H, W, C].
        order: of bytes, ``<`` or ``>``.
        packed: by deflate.
        planar: whether each channel is a plane of its own.
        photometric: None: RGB for three channels or more, else gray; 0 is gray whose 0 is white, 5 is CMYK.
        extra: what the channels beyond color are: 0 unspecified, 1 premultiplied alpha, 2 alpha.
        depth: number of slices that the file claims to have.
        orientation: how the image is turned, 1 to 8 as in EXIF.
    """
    height, width, channels = image.shape
    planes = list(image.transpose(2, 0, 1)) if planar else [image]
    data = [plane.astype(image.dtype.newbyteorder(order)).tobytes() for plane in planes]
    data = [zlib.compress(plane) for plane in data] if packed else data
    photometric = (2 if channels >= 3 else 1) if photometric is None else photometric
    kind = {"u": 1, "i": 2, "f": 3}[image.dtype.kind]
    tags: dict[int, tuple[str, list[int]]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [8 * image.dtype.itemsize] * channels),
        259: ("H", [8 if packed else 1]),
        262: ("H", [photometric]),
        274: ("H", [orientation]),
        273: ("I", [0] * len(data)),
        277: ("H", [channels]),
        278: ("I", [height]),
        279: ("I", [len(plane) for plane in data]),
        284: ("H", [2 if planar else 1]),
        339: ("H", [kind] * channels),
    }
    if extra:
        tags[338] = ("H", list(extra))
    if depth > 1:
        tags[32997] = ("I", [depth])
    base = 8 + 2 + 12 * len(tags) + 4
    long = sum(size for form, values in tags.values() if (size := struct.calcsize(f"{len(values)}{form}")) > 4)
    start, entries, values_behind = base + long, b"", b""
    for tag, (form, values) in sorted(tags.items()):
        if tag == 273:
            values = [start + sum(map(len, data[:number])) for number in range(len(data))]
        body = struct.pack(f"{order}{len(values)}{form}", *values)
        if len(body) > 4:
            body, values_behind = struct.pack(f"{order}I", base + len(values_behind)), values_behind + body
        entries += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[form], len(values)) + body.ljust(4, b"\0")
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(f"{order}HI", 42, 8) + struct.pack(f"{order}H", len(tags))
    return head + entries + struct.pack(f"{order}I", 0) + values_behind + b"".join(data)
