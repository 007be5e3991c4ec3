"""How well the guarantees of a run hold on the images of another microscope, before and after it is calibrated on a few hundred
of them. The images of the other microscope are the run's own val and test images, corrupted: for example out of focus and with
a color cast.

    python benchmarks/elsewhere.py RUN --corruptions defocus-blur:3 color-cast:3 --labeled 300
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from common import print_machine, print_table
from petriscope import api
from petriscope.augment.corruptions import corrupt
from petriscope.core.results import Evaluation
from petriscope.data import ImageSet, load_dataset
from petriscope.run.folder import open_run
from petriscope.trust.robustness import stratified


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", help="where the images of the run are now, if they were moved")
    parser.add_argument("--corruptions", nargs="+", default=["defocus-blur:3"], metavar="NAME:SEVERITY")
    parser.add_argument("--labeled", type=int, default=300, help="images of val to calibrate on")
    parser.add_argument("--max-error", type=float, default=0.01, choices=(0.005, 0.01, 0.02, 0.05))
    args = parser.parse_args()
    print_machine()
    data = open_run(args.run).recipe.data
    dataset = load_dataset(data if args.data is None else data.model_copy(update={"source": args.data}))
    val, test = dataset.split("val"), dataset.split("test")
    val = val.subset(stratified(val.strata, args.labeled))
    steps = [(name, float(severity)) for name, _, severity in (each.partition(":") for each in args.corruptions)]
    print(f"{' and '.join(args.corruptions)}: {len(val)} labeled images, {len(test)} of test")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "elsewhere.npz"
        sides = {"val": val, "test": test}
        batch = {f"{split}_images": corrupted(images, steps) for split, images in sides.items()}
        np.savez(source, **batch, **{f"{split}_labels": images.targets[:, None] for split, images in sides.items()})
        before = api.evaluate(args.run, str(source))
        out = Path(folder) / "model.safetensors"
        api.recalibrate(args.run, str(source), out)
        after = api.evaluate(out, str(source))
    rows = [row("before", before, args.max_error), row("after", after, args.max_error)]
    print_table(
        (
            "",
            "accuracy",
            "ECE",
            "out of distribution",
            "answered",
            "wrong of them",
            "coverage of 95 % sets",
            "mean size",
        ),
        rows,
    )


def corrupted(images: ImageSet, steps: list[tuple[str, float]]) -> np.ndarray:
    """All images, uint8 [N, H, W, C], under one corruption after the other."""
    batch, at = torch.from_numpy(images.take(np.arange(len(images)))), torch.arange(len(images))
    for seed, (name, severity) in enumerate(steps):
        batch = corrupt(batch, name, severity, at, seed)
    return batch.numpy()


def row(label: str, found: Evaluation, max_error: float) -> tuple[str, ...]:
    assert found.selective and found.conformal and found.calibration and found.ood
    asked = next(each for each in found.selective if each.max_error == max_error)
    sets = next(each for each in found.conformal if each.level == 0.95 and each.method == "class")
    return (
        label,
        f"{100 * (found.value('accuracy') or 0):.2f} %",
        f"{100 * found.calibration.after.ece_equal_mass:.2f} %",
        f"{100 * found.ood.share:.1f} %",
        f"{100 * asked.coverage:.1f} %",
        "" if asked.error is None else f"{100 * asked.error:.2f} %",
        f"{100 * sets.coverage:.1f} %",
        f"{sets.mean_size:.2f}",
    )


if __name__ == "__main__":
    main()
