"""How often images that are like val's are taken for others, and how often images of another microscope and corrupted ones are
found. Val is split in two at random, again for each set: one half is what images are compared with, and the set is drawn from
the other half, or from its images corrupted, or from another source. The other half stands for new images like val's.

    python benchmarks/shift.py RUN --others SOURCE --corruptions defocus-blur:1 jpeg:1 color-cast:1
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from common import print_machine, print_table
from petriscope.augment.corruptions import corrupt
from petriscope.data import load_dataset
from petriscope.experiments.own_data import other_data
from petriscope.inference.predictor import load_model
from petriscope.metrics.intervals import wilson
from petriscope.report import wording
from petriscope.run.folder import open_run
from petriscope.trust.two_sample import Likeness, Traits, compare, joined

BATCH = 128
UNEVEN = 0.5  # Dirichlet parameter of class mixes; few classes have most of the images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", help="where the images of the run are now, if they were moved")
    parser.add_argument("--others", help="a source of another microscope, used as a whole")
    parser.add_argument("--corruptions", nargs="*", default=["defocus-blur:1"], metavar="NAME:SEVERITY")
    parser.add_argument("--sets", type=int, default=1000, help="of each kind that is like val; a tenth of the others")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print_machine()
    predictor = load_model(args.run)
    likeness = predictor.trust.likeness
    assert likeness is not None, "petriscope calibrate RUN adds what images of val are like"
    data = open_run(args.run).recipe.data
    val = load_dataset(data if args.data is None else data.model_copy(update={"source": args.data})).split("val")
    images, rng = val.take(np.arange(len(val))), np.random.default_rng(args.seed)

    def traits(batch: np.ndarray) -> Traits:
        parts = (batch[start : start + BATCH] for start in range(0, len(batch), BATCH))
        return joined([predictor.traits(part, likeness) for part in parts])

    plain, target, k = traits(images), val.targets, len(val.classes)
    other = None if args.others is None else other_data(predictor, args.others, "test", True)[0]
    seen = None if other is None else traits(other.take(np.arange(len(other))))

    def share(sets: int, draw: Callable[[np.ndarray], Traits]) -> tuple[str, str]:
        alarms = tested = 0
        for _ in range(sets):
            order = rng.permutation(len(val))
            known, rest = order[: len(val) // 2], order[len(val) // 2 :]
            found = compare(Likeness(likeness.project, plain.take(known), target[known]), draw(rest), val.classes)
            tested, alarms = tested + (found.p is not None), alarms + found.withdrawn
        return f"{tested:,}", f"{100 * alarms / max(tested, 1):.1f} % ({wording.span(wilson(alarms, tested))})"

    def like(rest: np.ndarray, n: int) -> Traits:
        return plain.take(rng.choice(rest, n, replace=False))

    def one_class(rest: np.ndarray, n: int) -> Traits:
        rows = rest[target[rest] == rng.integers(k)]
        return plain.take(rng.choice(rows, min(n, len(rows)), replace=False))

    def mixed(rest: np.ndarray, n: int) -> Traits:
        shares = rng.dirichlet(np.full(k, UNEVEN)) / np.maximum(np.bincount(target[rest], minlength=k), 1)
        weights = shares[target[rest]]
        n = min(n, int((weights > 0).sum()))
        return plain.take(rng.choice(rest, n, replace=False, p=weights / weights.sum()))

    kinds = [("like val", like, n) for n in (20, 50, 100, 400)]
    kinds += [
        (name, draw, n) for name, draw in (("of one class", one_class), ("of another mix", mixed)) for n in (50, 400)
    ]
    rows = [(name, f"{n}", *share(args.sets, partial(draw, n=n))) for name, draw, n in kinds]
    print_table(("sets", "images", "tested", "alarms (95 %)"), rows)

    def drawn_from(found: Traits, rest: np.ndarray | None, n: int) -> Traits:
        return found.take(rng.choice(len(found) if rest is None else rest, n, replace=False))

    few, rows = max(1, args.sets // 10), []
    for n in (20, 50, 100) if seen is not None else ():
        rows.append((str(args.others), f"{n}", *share(few, lambda _, n=n: drawn_from(seen, None, n))))
    for each in args.corruptions:
        name, _, severity = each.partition(":")
        batch = corrupt(torch.from_numpy(images), name, float(severity), torch.arange(len(images)), args.seed).numpy()
        worse = traits(batch)
        label = f"{each}, accuracy {100 * (worse.predicted == target).mean():.1f} %"
        rows += [(label, f"{n}", *share(few, partial(drawn_from, worse, n=n))) for n in (20, 50)]
    print(f"accuracy on val {100 * (plain.predicted == target).mean():.1f} %")
    print_table(("sets", "images", "tested", "found (95 %)"), rows)


if __name__ == "__main__":
    main()
