"""How fast a folder of image files becomes a data set, and how fast batches of a set are read that does not fit the memory.

python benchmarks/files.py --files 10000

Each figure is a ratio to a bare loop in the same run: the first start to Pillow alone, which decodes the same files with as many
threads, the second to a listing of the folder with the status of each file, and batches to those of a set in memory. Every part
runs in a process of its own, in turns, and the least of a few rounds counts, because other work on the machine only adds. The
files are written first, each with bytes of its own, and are in the cache of the system.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image

from common import print_machine, print_table
from petriscope.core.device import cores
from petriscope.core.recipe import DataSection
from petriscope.data import load_dataset
from petriscope.data.decode import workers

CLASSES = 8
KINDS = 200  # different images; files differ in the bytes after their end
AT_ONCE = 64


def write_files(folder: Path, count: int, side: int, kind: str) -> None:
    rng = np.random.default_rng(0)
    contents = []
    for _ in range(KINDS):
        coarse = rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        out = io.BytesIO()
        image.save(out, kind, **({"quality": 90} if kind == "JPEG" else {}))
        contents.append(out.getvalue())
    for number in range(count):
        place = folder / f"class-{number % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:06d}.{kind.lower()}").write_bytes(contents[number % KINDS] + number.to_bytes(4, "big"))


def bare(folder: Path) -> tuple[float, float]:
    """Seconds in which Pillow decodes all files in as many threads, and seconds of processors in it."""
    started, used = time.perf_counter(), time.process_time()

    def decode(paths: list[Path]) -> int:
        total = 0
        for path in paths:
            with Image.open(path) as image:
                total += np.asarray(image.convert("RGB")).nbytes
        return total

    with ThreadPoolExecutor(workers()) as pool:
        paths = [
            Path(entry.path)
            for place in sorted(os.scandir(folder), key=lambda e: e.name)
            for entry in os.scandir(place)
        ]
        sum(pool.map(decode, [paths[start : start + AT_ONCE] for start in range(0, len(paths), AT_ONCE)]))
    return time.perf_counter() - started, time.process_time() - used


def listing(folder: Path) -> tuple[float, float]:
    """Seconds in which the files are listed, each with its status, and seconds of processors in it."""
    started, used = time.perf_counter(), time.process_time()
    sum(entry.stat().st_size for place in os.scandir(folder) for entry in os.scandir(place))
    return time.perf_counter() - started, time.process_time() - used


def read(folder: Path, memory: str) -> tuple[float, float]:
    """Seconds from the folder to a data set (listed, decoded, hashed, split), and seconds of processors in it."""
    load_dataset("synthetic-smear:100")  # so that all libraries are imported
    import_module("petriscope.data.sources.folders")
    started, used = time.perf_counter(), time.process_time()
    load_dataset(DataSection(source=str(folder), memory=memory))  # type: ignore[arg-type]
    return time.perf_counter() - started, time.process_time() - used


def batches(folder: Path, memory: str, rounds: int) -> dict[str, float]:
    """Images per second in random batches, and how much the memory grows over them, in MiB."""
    import torch

    from petriscope.data.batches import Batches

    images = load_dataset(DataSection(source=str(folder), memory=memory)).split("train")  # type: ignore[arg-type]
    ready = Batches(images, torch.device("cpu"), memory)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    before, seconds = resident(), []
    for _ in range(rounds):
        order = rng.permutation(len(images))[: 128 * 100]
        started = time.perf_counter()
        for taken, _ in ready.iterate([order[start : start + 128] for start in range(0, len(order), 128)]):
            used = taken.float().mean()  # what the lightest training step does with them
        seconds.append((time.perf_counter() - started) / len(order))
    assert torch.isfinite(used)
    return {"rate": 1 / min(seconds), "grown": resident() - before}


def resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def apart(part: str, folder: Path, *more: str) -> dict[str, float]:
    """One part in a process of its own."""
    command = [sys.executable, __file__, "--part", part, "--folder", str(folder), *more]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(json.loads(out.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--kind", choices=("JPEG", "PNG"), default="JPEG")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--memory", default="auto", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part == "bare":
        print(json.dumps(dict(zip(("seconds", "used"), bare(args.folder), strict=True))))
    elif args.part == "listing":
        print(json.dumps(dict(zip(("seconds", "used"), listing(args.folder), strict=True))))
    elif args.part == "read":
        print(json.dumps(dict(zip(("seconds", "used"), read(args.folder, args.memory), strict=True))))
    elif args.part == "batches":
        print(json.dumps(batches(args.folder, args.memory, args.rounds)))
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    root = Path(tempfile.mkdtemp())
    try:
        folder = root / "files"
        write_files(folder, args.files, args.side, args.kind)
        os.environ["PETRISCOPE_CACHE"] = str(root / "cache")
        rounds: dict[str, list[dict[str, float]]] = {"bare": [], "first": [], "listing": [], "again": []}
        for _ in range(args.rounds):
            shutil.rmtree(root / "cache", ignore_errors=True)
            rounds["bare"].append(apart("bare", folder))
            rounds["first"].append(apart("read", folder, "--memory", "mapped"))
            rounds["listing"].append(apart("listing", folder))
            rounds["again"].append(apart("read", folder, "--memory", "mapped"))
        best = {name: {key: min(each[key] for each in found) for key in found[0]} for name, found in rounds.items()}
        alone, first, listed, again = best["bare"], best["first"], best["listing"], best["again"]
        held = apart("batches", folder, "--memory", "resident", "--rounds", str(args.rounds))
        mapped = apart("batches", folder, "--memory", "mapped", "--rounds", str(args.rounds))
    finally:
        shutil.rmtree(root)
    print_machine()
    print(f"{args.files:,} {args.kind} files of {args.side}x{args.side}, {cores()} cores")
    wall, used = alone["seconds"], alone["used"]
    rows = [
        ("Pillow alone", f"{wall:.2f} s", f"{used:.2f} s", f"{args.files / wall:,.0f} images/s", ""),
        (
            "first start",
            f"{first['seconds']:.2f} s",
            f"{first['used']:.2f} s",
            f"{args.files / first['seconds']:,.0f} images/s",
            f"{wall / first['seconds']:.2f} ({used / first['used']:.2f} of processors)",
        ),
        ("listing with status", f"{listed['seconds']:.2f} s", f"{listed['used']:.2f} s", "", ""),
        (
            "second start",
            f"{again['seconds']:.2f} s",
            f"{again['used']:.2f} s",
            "",
            f"{again['used'] / listed['used']:.1f} times the listing, of processors",
        ),
        ("batches, resident", f"{held['grown']:+.0f} MiB", "", f"{held['rate']:,.0f} images/s", ""),
        (
            "batches, mapped",
            f"{mapped['grown']:+.0f} MiB",
            "",
            f"{mapped['rate']:,.0f} images/s",
            f"{mapped['rate'] / held['rate']:.2f}",
        ),
    ]
    print_table(("part", "time or growth", "processors", "rate", "ratio"), rows)


if __name__ == "__main__":
    main()
