"""What do a run's promises come to on another microscope's images, before and after it is calibrated on a few hundred of them?
The other microscope is the run's own val and test, disturbed: out of focus and of another color, say.

    python benchmarks/elsewhere.py RUN --corruptions defocus-blur:3 color-cast:3 --labeled 300
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import print_machine, print_table
from petriscope import api
from petriscope.augment.corruptions import corrupt
from petriscope.data import ImageSet, load_dataset
from petriscope.run.folder import open_run
from petriscope.trust.robustness import stratified


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", help="where the run's images are now, if elsewhere")
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
        batch = {f"{split}_images": disturbed(images, steps) for split, images in sides.items()}
        np.savez(source, **batch, **{f"{split}_labels": images.targets[:, None] for split, images in sides.items()})
        before = api.evaluate(args.run, str(source))
        out = Path(folder) / "model.safetensors"
        api.recalibrate(args.run, str(source), out)
        after = api.evaluate(out, str(source))
    rows = [row("before", before, args.max_error), row("after", after, args.max_error)]
    print_table(("", "accuracy", "ECE", "unlike", "answered", "of them wrong", "95 % sets hold", "mean size"), rows)


def disturbed(images: ImageSet, steps: list[tuple[str, float]]) -> np.ndarray:
    """All images, uint8 [N, H, W, C], under one corruption after the other."""
    batch, at = torch.from_numpy(images.take(np.arange(len(images)))), torch.arange(len(images))
    for seed, (name, severity) in enumerate(steps):
        batch = corrupt(batch, name, severity, at, seed)
    return batch.numpy()


def row(label: str, metrics: dict[str, Any], max_error: float) -> tuple[str, ...]:
    asked = next(each for each in metrics["selective"] if each["max_error"] == max_error)
    held = next(each for each in metrics["conformal"] if each["level"] == 0.95 and each["method"] == "class")
    wrong = "" if asked["error"] is None else f"{100 * asked['error']:.2f} %"
    return (
        label,
        f"{100 * metrics['accuracy']:.2f} %",
        f"{100 * metrics['calibration']['after']['ece_equal_mass']:.2f} %",
        f"{100 * metrics['ood']['share']:.1f} %",
        f"{100 * asked['coverage']:.1f} %",
        wrong,
        f"{100 * held['coverage']:.1f} %",
        f"{held['mean_size']:.2f}",
    )


if __name__ == "__main__":
    main()
