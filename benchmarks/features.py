"""What running a frozen backbone only once gains: an epoch of head-only training with stored features, and without.

python benchmarks/features.py --data SOURCE
"""

from __future__ import annotations

import time

import numpy as np
import torch

from common import arguments, load, print_machine, print_table
from petriscope.augment.pipeline import Normalize
from petriscope.core.recipe import FinetuneSection, Part, load_recipe
from petriscope.data.batches import Batches
from petriscope.data.imageset import Dataset
from petriscope.data.normalization import mean_and_std
from petriscope.models import build_model
from petriscope.models.layers import head_of
from petriscope.training.loop import Trainer


def main() -> None:
    args = arguments(__doc__, size=96, images=1024, epochs=3, model="resnet18")
    dataset = load(args.data, size=args.size)
    train = dataset.split("train").subset(np.arange(args.images))
    dataset = Dataset(train=train)
    print_machine()

    def trainer(kept: bool) -> Trainer:
        torch.manual_seed(0)
        recipe = load_recipe("blood/simple-cnn")
        recipe = recipe.model_copy(
            update={
                "model": Part(name=args.model, **({"stem": "imagenet"} if args.model.startswith("resnet") else {})),
                "augment": (),
                "finetune": FinetuneSection(train="head"),
                "training": recipe.training.model_copy(update={"ema": None}),
            }
        )
        model = build_model(recipe.model, len(dataset.classes), dataset.shape)
        batches = Batches(train, torch.device("cpu"))
        made = Trainer(model, recipe, batches, None, Normalize(*mean_and_std(train)), quiet=True)
        made.plan.freeze(made.plan.stage(0).names)
        if kept:
            made.run_backbone_once()
        return made

    def epoch(made: Trainer, number: int) -> float:
        start = time.perf_counter()
        for images, targets in made.train.iterate(made.epoch_batches(number)):
            made.train_step(images, targets)
        return time.perf_counter() - start

    start = time.perf_counter()
    quick = trainer(kept=True)
    once = time.perf_counter() - start
    slow = trainer(kept=False)
    epoch(quick, 0)
    pairs = [(epoch(slow, number), epoch(quick, number)) for number in range(args.epochs)]
    ratios = sorted(without / kept for without, kept in pairs)
    heads = ", ".join(head_of(slow.model))
    print(f"{args.model}, {args.images:,} images of {args.size} px; trained: {heads}")
    print_table(
        ("", "an epoch"),
        [
            ("backbone run every epoch", f"{min(without for without, _ in pairs):.2f} s"),
            ("features stored", f"{min(kept for _, kept in pairs):.3f} s"),
            ("times faster (range)", f"{ratios[len(ratios) // 2]:.0f} ({ratios[0]:.0f} to {ratios[-1]:.0f})"),
            ("computing the features, once", f"{once:.2f} s"),
        ],
    )


if __name__ == "__main__":
    main()
