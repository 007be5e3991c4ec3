"""Damage files: bytes, text, trees of JSON and YAML, arrays, tables and the file itself. Every draw comes from ``rng``."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image

NUMBERS = (0, 1, -1, 2, 7, 255, 256, 65536, -(2**31), 2**31, 2**63, 10**30, 0.5, -0.5, 1e-320, 1e308)
VALUES: tuple[Any, ...] = (
    *NUMBERS,
    float("nan"),
    float("inf"),
    float("-inf"),
    None,
    True,
    False,
    "",
    " ",
    "x",
    "é",
    "\x00",
    "\ud800",
    "~nobody/x",
    "../x",
    "/dev/null",
    "/proc/self/mem",
    "=1+1",
    "a" * 300,
    [],
    {},
    [[]],
    [0],
    ["x"],
    {"x": 1},
    {"name": "x"},
)
TEXTS = (
    "", "0", "-1", "1e999", ".nan", ".inf", "null", "~", "[", "{", "}", ":", "- ", "? ", "!!int x", "!!python/name:os",
    "&a [*a]", "*a", "<<: 1", "'", '"', ",", ";", "\t", "\r", "\n", "\x00", "\ufeff", "é", "9" * 5000, "1_0", "0x", "%",
    "---\n", "...", "|", ">", "#", "NaN", "Infinity", "-Infinity", "\\u0000", "../", "=",
)  # fmt: skip
PIECES = (
    b"\x00" * 4,
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\x00\x00\x00\x80",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"PK",
    b"%!PS",
)
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16")
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000", "EPS", "PDF", "ICO", "DDS", "TGA")
DTYPES = ("u1", "i1", "<u2", ">u2", "<i4", ">i8", "<f2", "<f4", ">f8", "?", "c8", "S3", "U3", "M8[s]", "m8[D]", "V2")


def mutate(path: Path, rng: random.Random) -> str:
    """Damage a file in one of the ways that fit it. Return the name of the way."""
    ways: list[Callable[[Path, random.Random], None]] = [_bytes, _bytes, _bytes, _file]
    ways += {
        ".json": [_json, _json, _text],
        ".jsonl": [_json_lines, _json_lines, _text],
        ".yaml": [_yaml, _yaml, _text],
        ".xml": [_text, _text],
        ".txt": [_text, _text],
        ".csv": [_text, _text, _table],
        ".parquet": [_table, _table],
        ".npz": [_arrays, _arrays, _arrays],
        ".safetensors": [_header, _header, _tensors],
    }.get(path.suffix, [_image, _image] if path.suffix in Image.registered_extensions() else [])
    way = rng.choice(ways)
    try:
        way(path, rng)
    except (ValueError, KeyError, IndexError, TypeError, OSError, OverflowError):  # an empty table, no number to change
        way = _bytes
        way(path, rng)
    return way.__name__.strip("_")


def _bytes(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(data) + 1) if rng.random() < 0.5 else rng.randrange(min(len(data), 256) + 1)
        end = min(len(data), at + rng.choice((1, 1, 2, 4, 8, 64, 1024)))
        match rng.randrange(7):
            case 0:
                for place in range(at, end):
                    data[place] ^= 1 << rng.randrange(8)
            case 1:
                data[at:end] = rng.randbytes(end - at)
            case 2:
                del data[at:end]
            case 3:
                data[at:at] = data[at:end] * rng.choice((1, 2, 50))
            case 4:
                piece = rng.choice(PIECES)
                data[at : at + len(piece)] = piece
            case 5:
                data[at:at] = rng.randbytes(rng.choice((1, 4, 100)))
            case _:
                del data[at:]
    path.write_bytes(bytes(data))


def _text(path: Path, rng: random.Random) -> None:
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    for _ in range(rng.choice((1, 1, 2, 5))):
        lines = text.splitlines(keepends=True) or [""]
        line = rng.randrange(len(lines))
        match rng.randrange(6):
            case 0:
                del lines[line]
            case 1:
                lines.insert(line, lines[rng.randrange(len(lines))])
            case 2:
                at = rng.randrange(len(lines[line]) + 1)
                lines[line] = lines[line][:at] + rng.choice(TEXTS) + lines[line][at:]
            case 3:
                words = lines[line].split(rng.choice((" ", ",", ":")))
                words[rng.randrange(len(words))] = rng.choice(TEXTS)
                lines[line] = rng.choice((" ", ",", ": ")).join(words)
            case 4:
                other = rng.randrange(len(lines))
                lines[line], lines[other] = lines[other], lines[line]
            case _:
                lines[line] = lines[line] * rng.choice((2, 100))
        text = "".join(lines)
    encoding = rng.choice(("utf-8", "utf-8", "utf-8", "utf-8", "utf-16", "cp1252", "utf-8-sig"))
    path.write_bytes(text.encode(encoding, "surrogateescape" if encoding == "utf-8" else "replace"))


def change(tree: Any, rng: random.Random) -> Any:
    """The tree with one value, key or entry changed, at any depth."""
    if isinstance(tree, dict) and tree and rng.random() < 0.85:
        out = dict(tree)
        key = rng.choice(list(out))
        match rng.randrange(8):
            case 0:
                del out[key]
            case 1:
                out[rng.choice(("x", "name", "", "é", key + "x" if isinstance(key, str) else "y"))] = out.pop(key)
            case 2:
                out[rng.choice(("extra", "name", "extends"))] = rng.choice(VALUES)
            case _:
                out[key] = change(out[key], rng)
        return out
    if isinstance(tree, list) and tree and rng.random() < 0.85:
        out_list = list(tree)
        at = rng.randrange(len(out_list))
        match rng.randrange(6):
            case 0:
                del out_list[at]
            case 1:
                out_list.insert(at, out_list[at])
            case 2:
                out_list = out_list * rng.choice((0, 2, 30))
            case _:
                out_list[at] = change(out_list[at], rng)
        return out_list
    if isinstance(tree, str) and tree and rng.random() < 0.4:
        at = rng.randrange(len(tree))
        return tree[:at] + rng.choice(TEXTS) + tree[at + rng.randrange(3) :]
    if isinstance(tree, int | float) and not isinstance(tree, bool) and rng.random() < 0.5:
        return rng.choice(NUMBERS)
    return rng.choice(VALUES)


def _json(path: Path, rng: random.Random) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text("utf-8")), rng)), "utf-8")


def _json_lines(path: Path, rng: random.Random) -> None:
    lines = path.read_text("utf-8").splitlines()
    at = rng.randrange(len(lines))
    lines[at] = json.dumps(change(json.loads(lines[at]), rng))
    path.write_text("\n".join(lines) + "\n", "utf-8")


def _yaml(path: Path, rng: random.Random) -> None:
    tree = change(yaml.safe_load(path.read_text("utf-8")), rng)
    path.write_bytes(yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass"))


def _table(path: Path, rng: random.Random) -> None:
    frame = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    column = rng.choice(list(frame.columns))
    match rng.randrange(6):
        case 0:
            frame = frame.drop(columns=column)
        case 1:
            frame = frame.rename(columns={column: rng.choice(("x", "label", "path", "id", "image", ""))})
        case 2:
            values = frame[column].astype(object)
            values[rng.randrange(len(values))] = rng.choice((None, "", "x", "é", "a\x00b", "../x", "=1", " cat"))
            frame[column] = values.astype(str)
        case 3:
            frame[column] = [rng.choice((0, 1, -1, 7, 2.5, 1e300, float("nan")))] * len(frame)
        case 4:
            frame = frame.iloc[: rng.choice((0, 1, 2))]
        case _:
            frame = pd.concat([frame, frame.sample(2, random_state=rng.randrange(100))])
    frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path)


def _arrays(path: Path, rng: random.Random) -> None:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    name = rng.choice(list(arrays))
    array = arrays[name]
    match rng.randrange(10):
        case 0:
            del arrays[name]
        case 1:
            arrays[rng.choice(("x", "train_labels", "test_images", "train_masks", "classes", "é"))] = arrays.pop(name)
        case 2:
            with np.errstate(all="ignore"):
                arrays[name] = np.resize(array, array.shape).astype(rng.choice(DTYPES), casting="unsafe")
        case 3:
            arrays[name] = array[: rng.choice((0, 1, 2))]
        case 4:
            arrays[name] = np.expand_dims(array, rng.randrange(array.ndim + 1))
        case 5:
            arrays[name] = array.reshape(-1)
        case 6:
            arrays[name] = np.array(rng.choice((0, -1, 3.5, "x", float("nan"))))
        case 7:
            arrays[name] = np.asfortranarray(array)
        case 8:
            arrays[name] = np.moveaxis(array, 0, -1)
        case _:
            arrays[name] = np.full_like(array, rng.choice((0, 1)))
    rng.choice((np.savez, np.savez_compressed))(path, **arrays)


def _header(path: Path, rng: random.Random) -> None:
    """Change the header of a safetensors file, mostly what Petriscope keeps in it as JSON."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    facts = header.get("__metadata__", {})
    if facts and rng.random() < 0.8:
        key = rng.choice(list(facts))
        try:
            facts[key] = json.dumps(change(json.loads(facts[key]), rng))
        except ValueError:
            facts[key] = rng.choice(TEXTS)
    else:
        header = change(header, rng)
    packed = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(packed)) + packed + data[8 + size :])


def _tensors(path: Path, rng: random.Random) -> None:
    """Overwrite numbers, for example with NaN."""
    data = bytearray(path.read_bytes())
    size = struct.unpack("<Q", data[:8])[0]
    at = rng.randrange(8 + size, max(9 + size, len(data) - 64))
    piece = rng.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f", b"\x00\x00\x00\x00"))
    data[at : at + 64] = piece * 16
    path.write_bytes(bytes(data))


def _image(path: Path, rng: random.Random) -> None:
    """Write another image in its place: another mode, size or format."""
    with Image.open(path) as image:
        image.load()
    side = rng.choice((1, 2, 8, 9, 300))
    match rng.randrange(3):
        case 0:
            image = Image.new(rng.choice(MODES), (side, rng.choice((1, 8, 9))), rng.choice((0, 1)))
        case 1:
            image = image.resize((side, side))
        case _:
            image = Image.fromarray(np.random.default_rng(rng.randrange(9)).integers(0, 2**16, (9, 8), dtype=np.uint16))
    for kind in rng.sample(FORMATS, len(FORMATS)):
        try:
            image.save(path, format=kind)
        except (OSError, ValueError, KeyError):  # this format does not have this mode
            continue
        return


def _file(path: Path, rng: random.Random) -> None:
    """Do something to the file itself."""
    others = [other for other in path.parent.iterdir() if other.is_file() and other != path]
    match rng.randrange(8):
        case 0:
            path.unlink()
        case 1:
            path.write_bytes(b"")
        case 2:
            path.unlink()
            path.mkdir()
        case 3:
            path.unlink()
            path.symlink_to(rng.choice((path.name, "/nowhere", "/dev/zero", "/dev/null", "..")))
        case 4:
            path.unlink()
            os.mkfifo(path)
        case 5:
            path.rename(path.with_name(os.fsdecode(rng.choice((b"\xe9", b"a\nb", b"=x", b" x ", b".x", b"-x")))))
        case 6 if others:
            shutil.copy(rng.choice(others), path)
        case _:
            path.write_bytes(rng.randbytes(rng.choice((1, 16, 4000))))
