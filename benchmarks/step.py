"""What augmentation, averaging and book-keeping cost: the whole training step against the bare one.

The bare step: forward, loss, backward, optimizer, on one normalized batch that is already there. The whole: what
`petriscope train` does for a step, from the index of the batch to the running averages. Same model, same batch size, same
number format, in turn.

Masks have their own data and recipe, by the recipe's batch.

    python benchmarks/step.py --data SOURCE --masks SOURCE
    python benchmarks/step.py --recipes all            # or some of them: --recipes blood/fast,mars/best

With ``--recipes``, each is taken as it ships, but for pretrained weights, which cost no time, and small images in the first
epochs. The operations of the bare step are counted, and compared with what products of matrices reach in the same number
format and with as many threads, in the same round: the share of the arithmetic limit. A loss that looks at several views of
an image has more to do in the whole step than in the bare one; the table marks it. With ``--clock processor`` and one thread,
processor time is taken, which other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from common import arguments, in_turn, make_trainer, print_machine, print_table, ratio
from petriscope.core.device import autocast, choose_format
from petriscope.core.errors import PetriscopeError
from petriscope.core.recipe import Part, Recipe, load_recipe, recipe_names, with_values
from petriscope.data import Dataset, load_dataset

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
PIXELS = {"cifar10": 32, "digits": 8, "chest": 28, "blood": 28, "blood-methods": 28}  # where a recipe does not say


def main() -> None:
    args = arguments(__doc__, steps=20, rounds=9, masks="synthetic-terrain:600", only="", recipes="", clock="wall")
    print_machine()
    if args.recipes:
        shipped(args)
        return
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


def shipped(args: argparse.Namespace) -> None:
    """The table of shipped recipes, the lowest share of the limit first. A recipe that needs what is not here is said."""
    rows, trained = [], set()
    for name in recipe_names() if args.recipes == "all" else args.recipes.split(","):
        try:
            recipe = load_recipe(name, ["training.progressive=null"])
            if "weights" in recipe.model.options:
                recipe = with_values(recipe, {"model.weights": "none"})
            source, size = data_of(name, recipe, args)
            dataset = load_dataset(
                recipe.data.model_copy(update={"source": source, "size": size, "ignore": ignored(source)})
            )
            whole, bare = steppers(recipe, dataset, 1, clock=CLOCKS[args.clock])
            work = operations(recipe, dataset)
        except (PetriscopeError, ImportError) as error:
            print(f"{name}: not measured, {error}", file=sys.stderr)
            continue
        kind = choose_format(recipe.training.precision, torch.device("cpu"))
        parts = (recipe.model, recipe.augment, recipe.loss, recipe.optimizer, recipe.training.ema, recipe.finetune)
        same = (work, kind, str(parts))
        if same in trained:
            print(f"{name}: the same step as one before", file=sys.stderr)
            continue
        trained.add(same)
        several = max(1, round(0.2 / max(bare(), 1e-4)))  # steps in a round, so that a round is no moment
        products = rate_of_products(kind, CLOCKS[args.clock])
        ours, reference, limits = in_turn([times(whole, several), times(bare, several), products], args.rounds)
        share = [work * several / seconds * limit for seconds, limit in zip(reference, limits, strict=True)]
        rows.append(
            (
                statistics.median(share),
                name + (" (several views)" if recipe.loss.options.get("views") else ""),
                kind,
                str(recipe.training.batch_size),
                f"{1000 * statistics.median(reference) / several:.1f} ms",
                f"{work / 1e9:.1f}",
                f"{statistics.median(share):.2f}",
                ratio(ours, reference),
            )
        )
        print(*rows[-1][1:], sep=", ", file=sys.stderr, flush=True)
    header = (
        "recipe",
        "format",
        "batch",
        "bare step",
        "GFLOP",
        "share of the limit",
        "whole / bare image rate (range)",
    )
    print_table(header, [row[1:] for row in sorted(rows)])


def operations(recipe: Recipe, dataset: Dataset) -> int:
    """Operations of a bare step: those of the forward pass, three times where a gradient is wanted. torch's counter is not asked
    about the backward pass, since it takes grouped convolutions for whole ones there."""
    trainer = make_trainer(recipe, dataset)
    model = trainer.model.train()
    height, width, channels = dataset.shape
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        trainer.step_model(torch.zeros(recipe.training.batch_size, channels, height, width))
    counts = {name.partition(".")[2]: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    own = Counter(counts)  # without what modules within do
    for name, count in counts.items():
        if name:
            own[name.rpartition(".")[0]] -= count
    trained = any(each.requires_grad for each in model.parameters())
    frozen = 0
    for name, module in model.named_modules():
        parameters = list(module.parameters(recurse=False))
        if not (all(each.requires_grad for each in parameters) if parameters else trained):
            frozen += own[name]
    return 3 * counter.get_total_flops() - 2 * frozen


def data_of(name: str, recipe: Recipe, args: argparse.Namespace) -> tuple[str, tuple[int, int] | int | None]:
    """The source and size of the images on which a shipped recipe is timed."""
    room = name.partition("/")[0]
    if room == "mars":
        return args.masks, recipe.data.size
    if room == "chest":
        return "synthetic-shapes:600", PIXELS[room]
    if room == "demo" or room.startswith("synthetic-") or room == "digits":
        return recipe.data.source or args.data, recipe.data.size
    return args.data, recipe.data.size or PIXELS[room]


def times(action: Callable[[], float], count: int) -> Callable[[], float]:
    """An action done so often, which returns its seconds in all."""
    return lambda: sum(action() for _ in range(count))


def rate_of_products(kind: str, clock: Callable[[], float]) -> Callable[[], float]:
    """A function that multiplies matrices and returns the seconds of an operation at that rate: its two operations for each
    product and sum, at the best of three sizes."""
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    pairs = [(torch.randn(side, side, dtype=dtype), torch.randn(side, side, dtype=dtype)) for side in (512, 1024, 2048)]

    def seconds() -> float:
        found = []
        for left, right in pairs:
            start = clock()
            left @ right
            found.append((clock() - start) / (2 * len(left) ** 3))
        return min(found)

    return seconds


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
    recipe: Recipe,
    dataset: Dataset,
    steps: int,
    device: str = "cpu",
    convolutions: AbstractContextManager[Any] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Callable[[], float], Callable[[], float]]:
    """Functions that do so many steps and return the seconds they took: the whole step, and the bare one.

    ``convolutions``: the context of the bare step's forward pass; None: what the trainer uses.
    """
    trainer = make_trainer(recipe, dataset, device=device)
    bare = make_trainer(recipe, dataset, device=device)
    context = bare.convolutions if convolutions is None else convolutions
    batches = trainer.epoch_batches(0)
    order = [batches[index % len(batches)] for index in range(steps)]
    images = trainer.normalize(trainer.train.take(order[0])[0])
    targets = trainer.train.take(order[0])[1].long()
    trainer.model.train()
    bare.model.train()

    def whole() -> float:
        start = clock()
        sums = torch.zeros(4, dtype=torch.float64, device=device)
        for batch, labels in trainer.train.iterate(order):
            sums += trainer.train_step(batch, labels)
        finish(device)
        return clock() - start

    def plain() -> float:
        start = clock()
        for _ in range(steps):
            with autocast(bare.device, bare.format), context:
                out = bare.step_model(images)
            logits, own = out if isinstance(out, tuple) else (out, 0.0)  # as of an autoencoder
            (bare.loss(logits.float(), targets) + own).backward()
            bare.optimizer.step()
            bare.optimizer.zero_grad(set_to_none=True)
        finish(device)
        return clock() - start

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
