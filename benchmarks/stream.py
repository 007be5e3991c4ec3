"""How fast shards are streamed, beside images in memory, and what memory that takes.

    python benchmarks/stream.py [--images 20000] [--side 96] [--models simple-cnn resnet18]

Tar shards of JPEG files are written first. Each row is measured in a process of its own, in turn with the others, after its
shards were looked through: batches in the order of an epoch alone, and whole training steps. Ratios are to images in memory in
the same run, by the clock and by seconds of processors. The memory is that of the process, and what it has gained between its
first and its last batch.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image

from common import print_machine, print_table
from petriscope.core.recipe import DataSection, Part, load_recipe
from petriscope.data import load_dataset

CLASSES, KINDS, EACH = 8, 200, 2000  # different images; images per shard
BATCH = 64
NONE = "none"


def write_shards(folder: Path, count: int, side: int) -> None:
    folder.mkdir(parents=True)
    rng, contents = np.random.default_rng(0), []
    for _ in range(KINDS):
        coarse = rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        contents.append(out.getvalue())
    for start in range(0, count, EACH):
        with tarfile.open(folder / f"train-{start // EACH:06d}.tar", "w") as archive:
            for number in range(start, min(start + EACH, count)):
                image = contents[number % KINDS] + number.to_bytes(4, "big")
                for suffix, data in (("jpg", image), ("cls", str(number % CLASSES).encode())):
                    info = tarfile.TarInfo(f"{number:08d}.{suffix}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))


def memory() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def listed(folder: Path) -> dict[str, float]:
    """Seconds by the clock and of processors until the set is known, and MiB that this takes and that it leaves."""
    load_dataset("synthetic-smear:100")  # so that all libraries are imported
    import_module("petriscope.data.sources.streams")
    began, used, before = time.perf_counter(), time.process_time(), memory()
    dataset = load_dataset(DataSection(source=str(folder), stream=True, val_fraction=0, test_fraction=0))  # type: ignore[arg-type]
    assert dataset.train is not None
    return {"clock": time.perf_counter() - began, "used": time.process_time() - used, "gained": memory() - before}


def measured(folder: Path, how: str, model: str, batches: int) -> dict[str, float]:
    """Seconds by the clock and of processors per image, and MiB: all of the process, and gained over the batches."""
    import torch

    from petriscope.training.build import build_trainer

    torch.set_num_threads(1)
    recipe = load_recipe(
        "demo",
        data={"source": str(folder), "val_fraction": 0, "test_fraction": 0}
        | ({"stream": True} if how == "streamed" else {"memory": how}),
        model=Part(name="simple-cnn" if model == NONE else model),
        augment=("flip", {"name": "rotate", "degrees": 10}),
        training={"batch_size": BATCH, "precision": "fp32", "device": "cpu"},
    )
    trainer, _ = build_trainer(recipe, load_dataset(recipe.data), torch.device("cpu"), True)
    several = trainer.epoch_batches(0)[: batches + 2]
    for number, (images, targets) in enumerate(trainer.train.iterate(several)):
        if number == 2:
            began, used, before = time.perf_counter(), time.process_time(), memory()
        if model == NONE:
            images.float().mean()  # what the lightest step does with them
        else:
            trainer.train_step(images, targets)
            trainer.at.batch += 1
    count = BATCH * (len(several) - 2)
    return {
        "clock": (time.perf_counter() - began) / count,
        "used": (time.process_time() - used) / count,
        "memory": memory(),
        "gained": memory() - before,
    }


def apart(folder: Path, how: str, model: str, batches: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--part", how, "--folder", str(folder), "--models", model]
    out = subprocess.run([*command, "--batches", str(batches)], check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(json.loads(out.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--models", nargs="*", default=["simple-cnn", "resnet18"])
    parser.add_argument("--batches", type=int, default=40, help="training steps that are timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part == "listed":
        print(json.dumps(listed(args.folder)))
        return
    if args.part:
        print(json.dumps(measured(args.folder, args.part, args.models[0], args.batches)))
        return
    root = Path(tempfile.mkdtemp())
    try:
        os.environ["PETRISCOPE_CACHE"] = str(root / "cache")
        write_shards(root / "set", args.images, args.side)
        size = sum(path.stat().st_size for path in (root / "set").iterdir())
        rows, starts = [], [(name, apart(root / "set", "listed", NONE, 0)) for name in ("first start", "second start")]
        for how in ("resident", "mapped"):  # so that all is decoded
            apart(root / "set", how, NONE, 1)
        for model in (NONE, *args.models):
            batches = args.images // BATCH - 3 if model == NONE else args.batches
            found: dict[str, list[dict[str, float]]] = {how: [] for how in ("resident", "mapped", "streamed")}
            for _ in range(args.rounds):
                for how, each in found.items():
                    each.append(apart(root / "set", how, model, batches))
            for how, each in found.items():
                ratios = [
                    [reference[key] / one[key] for reference, one in zip(found["resident"], each, strict=True)]
                    for key in ("clock", "used")
                ]
                rows.append(
                    (
                        "batches alone" if model == NONE else f"steps of {model}",
                        how,
                        f"{1 / statistics.median(one['clock'] for one in each):,.0f}",
                        f"{1 / statistics.median(one['used'] for one in each):,.0f}",
                        *(f"{statistics.median(some):.2f} ({min(some):.2f} to {max(some):.2f})" for some in ratios),
                        f"{max(one['memory'] for one in each):,.0f}",
                        f"{max(one['gained'] for one in each):+,.0f}",
                    )
                )
    finally:
        shutil.rmtree(root)
    print_machine()
    print(f"{args.images:,} JPEG files of {args.side}x{args.side} in shards of {EACH:,}, batches of {BATCH}\n")
    print_table(
        ("shards are looked through", "s", "s of processors", "images/s of a processor", "bytes of memory per image"),
        [
            (
                name,
                f"{each['clock']:.1f}",
                f"{each['used']:.2f}",
                f"{args.images / each['used']:,.0f}",
                f"{each['gained'] * 2**20 / args.images:,.0f}",
            )
            for name, each in starts
        ],
    )
    print(f"\n{size / args.images:,.0f} bytes per image in the shards\n")
    header = (
        "what",
        "images",
        "images/s",
        "images/s of a processor",
        "ratio by the clock",
        "ratio by processors",
        "MiB",
        "MiB gained",
    )
    print_table(header, rows)


if __name__ == "__main__":
    main()
