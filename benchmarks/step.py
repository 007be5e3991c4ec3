"""What augmentation, averaging and book-keeping cost: the whole training step against the bare one.

The bare step: forward, loss, backward, optimizer, on one normalized batch that is already there. The whole: what
`petriscope train` does for a step, from the index of the batch to the running averages. Same model, same batch size, same
number format, in turn.

Masks have their own data and recipe, by the recipe's batch.

    python benchmarks/step.py --data SOURCE --masks SOURCE
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from common import arguments, in_turn, make_trainer, print_machine, print_table, ratio
from petriscope.core.device import autocast, choose_format
from petriscope.core.recipe import Part, Recipe, load_recipe
from petriscope.data import Dataset, load_dataset


def main() -> None:
    args = arguments(__doc__, steps=20, rounds=9, masks="synthetic-terrain:600", only="")
    print_machine()
    rows = []
    for name, (recipe, dataset) in cases(args).items():
        steps = max(3, args.steps if name == "simple-cnn" else args.steps // 5)
        whole, bare = steppers(recipe, dataset, steps)
        ours, reference = in_turn([whole, bare], args.rounds)
        rows.append(
            (
                name,
                choose_format(recipe.training.precision, torch.device("cpu")),
                str(recipe.training.batch_size),
                f"{1000 * statistics.median(reference) / steps:.1f} ms",
                f"{1000 * statistics.median(ours) / steps:.1f} ms",
                ratio(ours, reference),
            )
        )
    print_table(("model", "format", "batch", "bare step", "whole step", "whole / bare image rate (range)"), rows)


def cases(args: argparse.Namespace) -> dict[str, tuple[Recipe, Dataset]]:
    """By name: a recipe and its data. ``args``: data, masks, and only, which the names have to contain."""
    blood, terrain = load_recipe("blood/fast"), load_recipe("mars/unet")
    parts = {
        "simple-cnn": (blood, Part(name="simple-cnn", norm="batch", dropout=0.2), args.data),
        "resnet18": (blood, Part(name="resnet18"), args.data),
        "d4-resnet": (blood, blood.model, args.data),
        "unet, masks": (terrain, terrain.model, args.masks),
    }
    return {
        name: (
            recipe.model_copy(update={"model": part}),
            load_dataset(recipe.data.model_copy(update={"source": source, "ignore": ignored(source)})),
        )
        for name, (recipe, part, source) in parts.items()
        if args.only in name
    }


def steppers(
    recipe: Recipe, dataset: Dataset, steps: int, device: str = "cpu"
) -> tuple[Callable[[], float], Callable[[], float]]:
    """Functions that do so many steps and return the seconds they took: the whole step, and the bare one."""
    trainer = make_trainer(recipe, dataset, device=device)
    bare = make_trainer(recipe, dataset, device=device)
    batches = trainer.epoch_batches(0)
    order = [batches[index % len(batches)] for index in range(steps)]
    images = trainer.normalize(trainer.train.take(order[0])[0])
    targets = trainer.train.take(order[0])[1].long()
    trainer.model.train()
    bare.model.train()

    def whole() -> float:
        start = time.perf_counter()
        sums = torch.zeros(4, dtype=torch.float64, device=device)
        for batch, labels in trainer.train.iterate(order):
            sums += trainer.train_step(batch, labels)
        finish(device)
        return time.perf_counter() - start

    def plain() -> float:
        start = time.perf_counter()
        for _ in range(steps):
            with autocast(bare.device, bare.format):
                logits = bare.model(images)
            bare.loss(logits.float(), targets).backward()
            bare.optimizer.step()
            bare.optimizer.zero_grad(set_to_none=True)
        finish(device)
        return time.perf_counter() - start

    return whole, plain


def finish(device: str) -> None:
    """Wait until a GPU has done its work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def ignored(source: str) -> str | None:
    """What is unlabeled in the file of Mars; drawn terrain has it marked."""
    return None if source.startswith("synthetic-") or "mars" not in source else "background"


if __name__ == "__main__":
    main()
