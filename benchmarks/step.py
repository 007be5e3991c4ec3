"""What augmentation, averaging and book-keeping cost: the whole training step against the bare one.

The bare step: forward, loss, backward, optimizer, on one normalized batch that is already there. The whole: what
`petriscope train` does for a step, from the index of the batch to the running averages. Same model, same batch size, same
number format, in turn.

Masks have their own data and recipe, by the recipe's batch.

    python benchmarks/step.py --data SOURCE --masks SOURCE
"""

from __future__ import annotations

import statistics
import time

import torch

from common import arguments, in_turn, make_trainer, print_machine, print_table, ratio
from petriscope.core.device import autocast
from petriscope.core.recipe import Part, load_recipe
from petriscope.data import load_dataset


def main() -> None:
    args = arguments(__doc__, steps=20, rounds=9, masks="synthetic-terrain:600", only="")
    print_machine()
    blood, terrain = load_recipe("blood/fast"), load_recipe("mars/unet")
    cases = {
        "simple-cnn": (blood, Part(name="simple-cnn", norm="batch", dropout=0.2), args.data),
        "resnet18": (blood, Part(name="resnet18"), args.data),
        "d4-resnet": (blood, blood.model, args.data),
        "unet, masks": (terrain, terrain.model, args.masks),
    }
    rows = []
    for name, (base, part, source) in cases.items():
        if args.only not in name:
            continue
        dataset = load_dataset(base.data.model_copy(update={"source": source, "ignore": ignored(source)}))
        recipe = base.model_copy(update={"model": part})
        trainer = make_trainer(recipe, dataset)
        bare = make_trainer(recipe, dataset)
        steps = max(3, args.steps if name == "simple-cnn" else args.steps // 5)
        order = trainer.epoch_batches(0)[:steps]
        images = trainer.normalize(trainer.train.take(order[0])[0])
        targets = trainer.train.take(order[0])[1].long()

        def whole(trainer=trainer, order=order) -> float:
            start = time.perf_counter()
            sums = torch.zeros(4, dtype=torch.float64)
            for batch, labels in trainer.train.iterate(order):
                sums += trainer.train_step(batch, labels)
            return time.perf_counter() - start

        def plain(bare=bare, steps=steps, images=images, targets=targets) -> float:
            start = time.perf_counter()
            for _ in range(steps):
                with autocast(bare.device, bare.format):
                    logits = bare.model(images)
                bare.loss(logits.float(), targets).backward()
                bare.optimizer.step()
                bare.optimizer.zero_grad(set_to_none=True)
            return time.perf_counter() - start

        trainer.model.train()
        bare.model.train()
        ours, reference = in_turn([whole, plain], args.rounds)
        rows.append(
            (
                name,
                trainer.format,
                str(base.training.batch_size),
                f"{1000 * statistics.median(reference) / steps:.1f} ms",
                f"{1000 * statistics.median(ours) / steps:.1f} ms",
                ratio(ours, reference),
            )
        )
    print_table(("model", "format", "batch", "bare step", "whole step", "whole / bare image rate (range)"), rows)


def ignored(source: str) -> str | None:
    """What is unlabeled in the file of Mars; drawn terrain has it marked."""
    return None if source.startswith("synthetic-") or "mars" not in source else "background"


if __name__ == "__main__":
    main()
