"""How an epoch's time and memory grow with the set: N, 2N, 4N images, resident and mapped from disk.

Each row is a process of its own, so that its peak memory is its own. Memory: the peak of the process less what it held
before the set was opened; for mapped sets it should not grow.

    python benchmarks/scaling.py
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from common import make_trainer, print_machine, print_table
from petriscope.core.recipe import Part, load_recipe
from petriscope.data.imageset import Dataset, ImageSet


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def measure(path: str, count: int, memory: str) -> None:
    """An epoch over the first ``count`` images of a file, after a short one that warms everything up."""
    recipe = load_recipe("blood/simple-cnn")
    recipe = recipe.model_copy(
        update={
            "model": Part(name="simple-cnn", norm="batch", widths=(8, 8, 8)),
            "data": recipe.data.model_copy(update={"memory": memory}),
        }
    )

    def open_set(number: int) -> Dataset:
        pixels = np.load(path, mmap_mode="r")
        targets = (np.arange(number) % 8).astype(np.int64)
        rows = np.arange(number)
        names = tuple("abcdefgh")
        return Dataset(train=ImageSet(pixels, targets, names, rows.astype(str), rows=rows))

    def epoch(dataset: Dataset) -> float:
        trainer = make_trainer(recipe, dataset)
        trainer.model.train()
        start = time.perf_counter()
        for images, targets in trainer.train.iterate(trainer.epoch_batches(0)):
            trainer.train_step(images, targets)
        return time.perf_counter() - start

    epoch(open_set(min(2000, count)))
    before = peak_bytes()
    seconds = epoch(open_set(count))
    print(json.dumps({"seconds": seconds, "bytes": peak_bytes() - before}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=int, default=25_000)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--measure", nargs=3, metavar=("FILE", "COUNT", "MEMORY"))
    args = parser.parse_args()
    if args.measure:
        measure(args.measure[0], int(args.measure[1]), args.measure[2])
        return
    print_machine()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pixels.npy"
        shape = (4 * args.base, args.side, args.side, 3)
        file = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        rng = np.random.default_rng(0)
        for start in range(0, len(file), 5000):
            file[start : start + 5000] = rng.integers(0, 256, file[start : start + 5000].shape, dtype=np.uint8)
        file.flush()
        del file
        for memory in ("resident", "mapped"):
            first = 0.0
            for times in (1, 2, 4):
                count = times * args.base
                command = [sys.executable, __file__, "--measure", str(path), str(count), memory]
                out = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                each = 1e6 * out["seconds"] / count
                first = first or each
                size = count * args.side**2 * 3
                rows.append(
                    (memory, f"{count:,}", f"{size / 2**20:,.0f} MiB", f"{out['seconds']:.1f} s", f"{each:.0f} µs",
                     f"{each / first:.2f}", f"{out['bytes'] / 2**20:,.0f} MiB")
                )  # fmt: skip
    print_table(("memory", "images", "their size", "an epoch", "an image", "relative to N", "added memory"), rows)


if __name__ == "__main__":
    main()
