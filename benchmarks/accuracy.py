"""What a recipe reaches: several seeds, chosen on val, test read once at the end. Prints a table with mean and spread.

Runs that are finished in --out are taken as they are, interrupted ones are resumed, so the command can be repeated.

    python benchmarks/accuracy.py blood/fast blood/best --data bloodmnist --seeds 0 1 2 --out runs/accuracy
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from common import print_table
from petriscope import api
from petriscope.core.recipe import load_recipe
from petriscope.run.folder import Run


def obtain(recipe: str, data: str | None, seed: int, out: Path) -> Run:
    """The finished run of a recipe and a seed, test evaluated."""
    folder = out / f"{recipe.replace('/', '-')}-seed{seed}"
    run = Run(folder)
    if not (folder / "recipe.yaml").is_file():
        source = {} if data is None else {"data": {"source": data}}
        run = api.train(load_recipe(recipe, seed=seed, **source), folder)
    elif "training" not in run.results:
        run = api.resume(folder)
    if "test" not in run.results:
        api.evaluate(folder)
    return run


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
            result, training, machine = run.results, run.results["training"], run.environment["hardware"]
            low, high = result["test"]["accuracy_ci95"]
            each.append(
                (
                    recipe,
                    seed,
                    f"{100 * result['val']['accuracy']:.2f} %",
                    f"{100 * result['test']['accuracy']:.2f} % ({100 * low:.1f} to {100 * high:.1f})",
                    f"{100 * result['test']['balanced_accuracy']:.2f} %",
                    f"{training['best_epoch']} of {training['epochs']}",
                    f"{training['seconds'] / 60:.1f} min, {machine['threads']} threads",
                )
            )
        parts = {split: [run.results[split]["accuracy"] for run in runs] for split in ("val", "test")}
        summary.append(
            (
                recipe,
                f"{runs[0].results['cost']['parameters']:,}",
                f"{runs[0].results['cost']['multiply_adds'] / 1e6:.0f} M",
                mean_and_spread(parts["val"]),
                mean_and_spread(parts["test"]),
                f"{runs[0].results['test']['n']:,}",
            )
        )
    print_table(("recipe", "seed", "val", "test (95 % interval)", "balanced, test", "kept epoch", "training"), each)
    print()
    print_table(("recipe", "parameters", "multiply-adds", "val, mean ± sd", "test, mean ± sd", "test images"), summary)


if __name__ == "__main__":
    main()
