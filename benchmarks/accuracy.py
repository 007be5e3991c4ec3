"""The accuracy of recipes over several seeds: choices are made on val, and test is read once at the end. Prints a table with
mean and standard deviation.

Finished runs in --out are reused and interrupted ones are resumed, so the command can be repeated.

    python benchmarks/accuracy.py blood/fast blood/best --data bloodmnist --seeds 0 1 2 --out runs/accuracy
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from common import print_table
from petriscope import api
from petriscope.core.recipe import load_recipe
from petriscope.report.wording import percent
from petriscope.run.folder import Run


def obtain(recipe: str, data: str | None, seed: int, out: Path) -> Run:
    """The finished run of a recipe and a seed, with test evaluated."""
    folder = out / f"{recipe.replace('/', '-')}-seed{seed}"
    run = Run(folder)
    if not (folder / "recipe.yaml").is_file():
        source = {} if data is None else {"data": {"source": data}}
        run = api.train(load_recipe(recipe, seed=seed, **source), folder)
    elif not run.finished:
        run = api.resume(folder)
    if run.results.test is None:
        api.evaluate(folder)
    return run


def accuracy_of(run: Run, split: str) -> float:
    found = run.results.split(split)
    return float("nan") if found is None else found.value("accuracy") or 0.0


def mean_and_spread(values: list[float]) -> str:
    spread = f" ± {100 * np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.2f}{spread} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    args = parser.parse_args()
    each, summary = [], []
    for recipe in args.recipes:
        runs = [obtain(recipe, args.data, seed, args.out) for seed in args.seeds]
        for seed, run in zip(args.seeds, runs, strict=True):
            result, threads = run.results, run.environment.hardware.threads
            training, val, test = result.training, result.val, result.test
            assert training and training.seconds and val and test
            low, high = test.metric("accuracy").ci95 or (None, None)
            each.append(
                (
                    recipe,
                    seed,
                    percent(val.value("accuracy")),
                    f"{percent(test.value('accuracy'))} ({percent(low, 1)} to {percent(high, 1)})",
                    percent(test.value("balanced_accuracy")),
                    f"{training.best_epoch} of {training.epochs}",
                    f"{training.seconds / 60:.1f} min, {threads} threads",
                )
            )
        parts = {split: [accuracy_of(run, split) for run in runs] for split in ("val", "test")}
        cost, test = runs[0].results.cost, runs[0].results.test
        assert cost and test
        summary.append(
            (
                recipe,
                f"{cost.parameters:,}",
                f"{cost.multiply_adds / 1e6:.0f} M",
                mean_and_spread(parts["val"]),
                mean_and_spread(parts["test"]),
                f"{test.n:,}",
            )
        )
    print_table(("recipe", "seed", "val", "test (95 % interval)", "balanced, test", "kept epoch", "training"), each)
    print()
    print_table(("recipe", "parameters", "multiply-adds", "val, mean ± sd", "test, mean ± sd", "test images"), summary)


if __name__ == "__main__":
    main()
