"""Wrong labels: how many of those put into a train split are found, and what their repair is worth to a predictor.

Labels of the train split are changed, then looked for with `petriscope.audit`; flagged ones are replaced by what is
suggested. Networks are trained on the changed and on the repaired labels and compared on the images of test.
What was computed is kept in --out, so the command can be repeated.

    python benchmarks/audit_labels.py --data bloodmnist --noise clean adjacent:10 --train uniform:5 uniform:20 --set augment=[]
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from common import load, print_machine, print_table
from petriscope.audit.label_errors import LabelErrors, find_label_errors, out_of_fold_probabilities
from petriscope.audit.small_network import shrink, train_small
from petriscope.core.recipe import load_recipe
from petriscope.data import Dataset, ImageSet
from petriscope.data.batches import Batches
from petriscope.inference.tta import predict_set
from petriscope.metrics.statistics import difference, mcnemar, resample

SIDE = 28  # pixels, of the networks that are compared


def spoil(targets: np.ndarray, classes: int, noise: str) -> np.ndarray:
    """Change a share of the labels: ``uniform:5``, 5 % to any other class; ``adjacent:10``, 10 % to the next one."""
    kind, _, percent = noise.partition(":")
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(targets), round(float(percent or 0) / 100 * len(targets)), replace=False)
    steps = rng.integers(1, classes, len(chosen)) if kind == "uniform" else np.ones(len(chosen), dtype=np.int64)
    spoiled = targets.copy()
    spoiled[chosen] = (targets[chosen] + steps) % classes
    return spoiled


def kept(path: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, compute())
    return np.load(path, allow_pickle=False)


def find(train: ImageSet, spoiled: np.ndarray, noise: str, out: Path) -> tuple[LabelErrors, float]:
    """What is found, and the processor seconds it took."""

    def compute() -> np.ndarray:
        started = time.process_time()
        probabilities = out_of_fold_probabilities(replace(train, targets=spoiled), quiet=False)
        return np.append(probabilities.ravel(), time.process_time() - started)

    values = kept(out / f"{noise.replace(':', '')}-probabilities.npy", compute)
    return find_label_errors(spoiled, values[:-1].reshape(len(train), -1).astype(np.float32)), float(values[-1])


def found_row(train: ImageSet, noise: str, out: Path) -> tuple[str, ...]:
    spoiled = spoil(train.targets, len(train.classes), noise)
    errors, seconds = find(train, spoiled, noise, out)
    wrong, flagged = spoiled != train.targets, errors.flagged
    hits = flagged & wrong

    def share(part: np.ndarray, whole: np.ndarray) -> str:
        return f"{100 * part.sum() / whole.sum():.1f} %" if whole.any() else "-"

    return (
        noise,
        f"{wrong.sum():,} of {len(train):,}",
        f"{flagged.sum():,} ({100 * flagged.mean():.2f} %)",
        share(hits, wrong),
        share(hits, flagged),
        share(hits & (errors.suggested == train.targets), hits),
        f"{seconds:.0f} s",
    )


def predict(train: ImageSet, test: ImageSet, recipe: str, changes: tuple[str, ...], seed: int) -> np.ndarray:
    """Classes of the test images, int64 [N], by a network trained with this seed."""
    chosen = load_recipe(recipe, ("training.ema=null", "training.keep=last", *changes), seed=seed)
    model, normalize = train_small(train, chosen)
    return predict_set(model, Batches(test, torch.device("cpu")), normalize, "fp32").argmax(1)


def repaired_rows(
    dataset: Dataset, noise: str, recipe: str, changes: tuple[str, ...], seeds: list[int], out: Path
) -> list[tuple[str, ...]]:
    train, test = shrink(dataset.split("train"), SIDE), shrink(dataset.split("test"), SIDE)
    spoiled = spoil(train.targets, len(train.classes), noise)
    repaired = find(dataset.split("train"), spoiled, noise, out)[0].suggested
    answers = {"changed": [], "repaired": []}  # type: dict[str, list[np.ndarray]]
    for seed in seeds:
        for name, labels in (("changed", spoiled), ("repaired", repaired)):
            trained = re.sub(r"\W+", "-", "-".join((recipe, *changes)))
            path = out / f"{noise.replace(':', '')}-{name}-{trained}-{seed}.npy"
            changed = replace(train, targets=labels)
            answers[name].append(kept(path, lambda c=changed, s=seed: predict(c, test, recipe, changes, s)))
    both = resample(np.stack(answers["changed"] + answers["repaired"]), test.targets, len(test.classes))
    before, after = both[: len(seeds)], both[len(seeds) :]
    rows = [
        (noise, f"seed {seed}", f"{100 * b.mean():.2f} %", f"{100 * a.mean():.2f} %", f"{100 * (a.mean() - b.mean()):+.2f}",
         f"{mcnemar(a, b):.2g}")
        for seed, b, a in zip(seeds, before.right, after.right, strict=True)
    ]  # fmt: skip
    if len(seeds) > 1:
        found = difference(after, before)
        low, high = found.ci95
        gain = f"{100 * found.value:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"
        rows.append((noise, "all", f"{100 * before.mean:.2f} %", f"{100 * after.mean:.2f} %", gain, f"{found.p:.2g}"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="synthetic-smear:2000", help="any source that petriscope reads")
    parser.add_argument("--noise", nargs="*", default=["clean", "uniform:5", "adjacent:10"], help="to be found")
    parser.add_argument("--train", nargs="*", default=["uniform:5", "uniform:20"], help="to be found, and trained with")
    parser.add_argument("--recipe", default="demo", help="of the networks that are compared; shown 28 pixels")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes to that recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/audit-labels"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    print_machine()
    dataset = load(args.data)
    train = dataset.split("train")
    noises = list(dict.fromkeys([*args.noise, *args.train]))
    print_table(
        ("labels changed", "wrong", "flagged", "found", "of the flagged, wrong", "of the found, rightly corrected", "processor"),
        [found_row(train, noise, args.out) for noise in noises],
    )  # fmt: skip
    if args.train:
        rows = [
            row
            for noise in args.train
            for row in repaired_rows(dataset, noise, args.recipe, tuple(args.set), args.seeds, args.out)
        ]
        named = " ".join((args.recipe, *args.set))
        print(f"\n{named}; accuracy on {len(dataset.split('test')):,} images of test:\n")
        print_table(("labels changed", "network", "trained on them", "on repaired ones", "gain", "p"), rows)


if __name__ == "__main__":
    main()
