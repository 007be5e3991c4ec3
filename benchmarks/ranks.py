"""Processes that train together against one: images per second of whole steps, one thread per process.

Each row is measured in processes of its own, started in turn, so that a drift of the machine affects all alike. The row of one
process under torchrun shows what being ready for others costs. Seconds of processors are those of all processes together; on a
machine that is shared, they say more than the clock does: what N processes can gain at most, with a core for each, is N times the
seconds of one process in units of those of N.

    python benchmarks/ranks.py --data SOURCE [--processes 2]

With ``--whole EPOCHS``, what is measured is `petriscope train` from its start to the report, with calibration, the stress test
and the explanations. With a core for each, the processes take as long as the busiest of them at least, so its seconds are the
bound then.

    python benchmarks/ranks.py --data SOURCE --whole 2 [--processes 2]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from common import arguments, load, print_machine, print_table, ratio
from petriscope.core.launch import launch
from petriscope.core.ranks import joined
from petriscope.core.recipe import Part, Recipe, load_recipe
from petriscope.experiments.train import train
from petriscope.training.build import build_trainer

BATCH = 128


def recipe_of(source: str, model: str, **training: int) -> Recipe:
    return load_recipe(
        "demo",
        data={"source": source, "size": 28},
        model=Part(name=model),
        augment=("flip", {"name": "rotate", "degrees": 10}),
        training={"batch_size": BATCH, "precision": "fp32", "device": "cpu", **training},
        evaluation={"stress": "val"},
    )


def trained(source: str, model: str, epochs: int, out: Path) -> None:
    """Train into ``out/run``, and write the seconds of the processor of this process there too."""
    train(recipe_of(source, model, epochs=epochs), out / "run", quiet=True)
    (out / f"{launch().rank}.json").write_text(json.dumps(time.process_time()))


def measured(source: str, model: str, steps: int) -> None:
    """Print the seconds of so many steps, after two that do not count: by the clock, and of the processors of all processes."""
    recipe = recipe_of(source, model)
    with joined() as ranks:
        dataset = load(source, 28)
        trainer, _ = build_trainer(recipe, dataset, torch.device("cpu"), True, ranks=ranks)
        batches = (trainer.epoch_batches(0) * (steps + 2))[: steps + 2]
        for number, (images, targets) in enumerate(trainer.train.iterate(batches)):
            if number == 2:
                began, used = time.perf_counter(), time.process_time()
            trainer.train_step(images, targets)
            trainer.at.batch += 1
        clock, every = time.perf_counter() - began, ranks.texts(repr(time.process_time() - used))
        if ranks.first:
            print(json.dumps([clock, sum(map(float, every))]))


def started(processes: int, words: list[str]) -> str:
    """What so many processes of this program print; 0 processes: one, without torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes else []
    command = [sys.executable, *torchrun, __file__, "--measure", "1", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def seconds(processes: int, words: list[str], whole: bool) -> tuple[float, float]:
    """By the clock, and of processors: of all processes for steps, of the busiest for a whole training."""
    if not whole:
        clock, used = json.loads(started(processes, words).strip().splitlines()[-1])
        return clock, used
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        started(processes, [*words, "--out", folder])
        clock = time.perf_counter() - began
        return clock, max(json.loads(each.read_text()) for each in Path(folder).glob("*.json"))


def main() -> None:
    args = arguments(__doc__, model="resnet18", steps=10, rounds=3, processes=2, whole=0, measure=0, out="")
    if args.measure:
        torch.set_num_threads(1)
        if args.whole:
            trained(args.data, args.model, args.whole, Path(args.out))
        else:
            measured(args.data, args.model, args.steps)
        return
    print_machine()
    print(f"{args.model} at 28 px, batches of {BATCH}, one thread per process\n")
    words = ["--data", args.data, "--model", args.model, "--steps", str(args.steps), "--whole", str(args.whole)]
    rows = {"1, alone": 0, **({} if args.whole else {"1, under torchrun": 1}), f"{args.processes}": args.processes}
    times: dict[str, list[float]] = {name: [] for name in rows}
    used: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(args.rounds):
        for name, processes in rows.items():
            clock, processors = seconds(processes, words, bool(args.whole))
            times[name].append(clock)
            used[name].append(processors)
    if args.whole:
        heads = (
            "seconds",
            "ratio to one alone",
            "seconds of the busiest processor",
            "ratio to one alone, of processors",
        )
        shown = {name: (f"{min(times[name]):.1f}", f"{min(used[name]):.1f}") for name in rows}
    else:
        heads = (
            "images per second",
            "ratio to one alone",
            "images per second of a processor",
            "ratio to one alone, of processors",
        )
        images = args.steps * BATCH
        shown = {name: (f"{images / min(times[name]):.1f}", f"{images / min(used[name]):.1f}") for name in rows}
    print_table(
        ("processes", *heads),
        [
            (
                name,
                shown[name][0],
                ratio(times[name], times["1, alone"]),
                shown[name][1],
                ratio(used[name], used["1, alone"]),
            )
            for name in rows
        ],
    )


if __name__ == "__main__":
    main()
