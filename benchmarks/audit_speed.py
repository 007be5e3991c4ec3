"""How the audit's time and memory grow with the set, and how it compares with CleanVision.

Growth: drawn cells of 28 pixels, mapped from disk; each row is a process of its own, its memory the peak less what it held
before the set was opened. Rival: both look for what both know, exact and near duplicates, dark, bright, blank, blurred and
gray images, once in memory and once in PNG files that both decode; in turn, five times each, the processor's time of all
processes.

    python benchmarks/audit_speed.py
    python benchmarks/audit_speed.py --counts 10000,20000,40000 --rival 0
    python benchmarks/audit_speed.py --counts 0 --data SOURCE
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
from PIL import Image

from common import in_turn, load, print_machine, print_table, ratio
from petriscope.audit.duplicates import find_duplicates
from petriscope.audit.planted import find_planted
from petriscope.audit.quality import measure_quality
from petriscope.data.imageset import ImageSet
from petriscope.data.sources.synthetic_smear import draw_smear
from scaling import peak_bytes

PARTS = {"duplicates": find_duplicates, "planted": find_planted, "quality": measure_quality}
SHARED = ("exact_duplicates", "near_duplicates", "dark", "light", "low_information", "blurry", "grayscale", "odd_size")


def measure(path: str, count: int) -> None:
    """Print the seconds of each part on the first ``count`` images, and the peak memory."""
    pixels = np.load(path, mmap_mode="r")
    rows = np.arange(count)
    images = ImageSet(pixels, np.zeros(count, np.int64), ("cell",), rows.astype(str), rows=rows)
    find_planted(draw_smear(200, 28, seed=1)[0])  # imports are no part of the growth
    before = peak_bytes()
    seconds = {}
    for name, part in PARTS.items():
        start = time.process_time()
        part(images)
        seconds[name] = time.process_time() - start
    print(json.dumps({**seconds, "memory": peak_bytes() - before}))


def growth(counts: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "cells.npy")
        np.save(path, draw_smear(max(counts), 28, seed=0)[0])
        rows = []
        for count in counts:
            command = [sys.executable, __file__, "--measure", path, str(count)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            memory = found.pop("memory")
            total = sum(found.values())
            rows.append(
                (f"{count:,}", *(f"{found[name]:.1f}" for name in PARTS), f"{total:.1f}", f"{1e6 * total / count:.0f}",
                 f"{memory / 2**20:.0f}", f"{memory / count:.0f}")
            )  # fmt: skip
    header = ("images", *(f"{name}, s" for name in PARTS), "all, s", "us an image", "peak MiB", "bytes per image")
    print_table(header, rows)


def seconds(action: Callable[[], None]) -> float:
    """Of processor time, the action's own processes included; what it prints is dropped."""
    start = os.times()
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):  # noqa: PTH123
        action()
    return sum(os.times()[:4]) - sum(start[:4])


class Shown:
    """Images in memory, as CleanVision takes them from a data set of torchvision's."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = [Image.fromarray(image) for image in images]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> tuple[Image.Image, int]:
        return self.images[place], 0


def rival(images: np.ndarray) -> None:
    try:
        from cleanvision import Imagelab
    except ImportError:
        print("CleanVision is not installed: pip install cleanvision")
        return
    count, size = images.shape[:2]
    rows = []

    def compare(name: str, ours: Callable[[], None], theirs: Callable[[], None]) -> None:
        own, other = in_turn([lambda: seconds(ours), lambda: seconds(theirs)], 5)
        rows.append((name, f"{np.median(other):.2f}", f"{np.median(own):.2f}", ratio(own, other)))

    def ours(images: np.ndarray) -> None:
        find_duplicates(images)
        measure_quality(images)

    def theirs(**source: object) -> None:
        lab = Imagelab(**source, verbose=False)
        lab.find_issues({name: {} for name in SHARED}, n_jobs=1, verbose=False)

    shown = Shown(images)
    ours(images[:100])  # imports are no part of it
    compare("in memory", lambda: ours(images), lambda: theirs(torchvision_dataset=shown))
    with tempfile.TemporaryDirectory() as folder:
        for place, image in enumerate(shown.images):
            image.save(Path(folder) / f"{place:06}.png")

        def decoded() -> np.ndarray:
            return np.stack([np.asarray(Image.open(path)) for path in sorted(Path(folder).iterdir())])

        compare("PNG files, decoding included", lambda: ours(decoded()), lambda: theirs(data_path=folder))
    header = (f"{count:,} images of {size} px", "CleanVision, CPU s", "Petriscope, CPU s", "times as fast")
    print_table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", default="10000,30000,100000")
    parser.add_argument("--rival", type=int, default=2000, help="images for the comparison; 0 leaves it out")
    parser.add_argument("--data", help="a source of images for the comparison, rather than drawn cells")
    parser.add_argument("--sizes", default="28,96", help="of the images for the comparison")
    parser.add_argument("--measure", nargs=2, metavar=("FILE", "COUNT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure[0], int(options.measure[1]))
        return
    print_machine()
    if options.counts != "0":
        growth([int(count) for count in options.counts.split(",")])
    if options.rival:
        if options.data:
            images = load(options.data).split("train")
            chosen = np.random.default_rng(0).permutation(len(images))[: options.rival]
            rival(images.take(chosen))
        for size in options.sizes.split(",") if not options.data else ():
            rival(draw_smear(options.rival, int(size), seed=0)[0])


if __name__ == "__main__":
    main()
