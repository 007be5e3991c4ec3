"""What the gradients of `petriscope.training.convolutions` bring: a training step with them and with torch's own, in turn.

    OMP_NUM_THREADS=1 python benchmarks/depthwise.py --data blood96

The steps are bare ones (`benchmarks/step.py`), in bf16, on a processor that multiplies it; weights are random.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from common import arguments, in_turn, make_trainer, print_machine, print_table, ratio
from petriscope.core.device import keep_freed_memory
from petriscope.core.recipe import Recipe, load_recipe
from petriscope.data import Dataset, load_dataset
from step import steppers

RECIPES = "blood96-transfer/whole,blood96-mobilenet/mobilenet-v3-large,blood96-convnext/convnext-small"


def main() -> None:
    args = arguments(__doc__, rounds=5, recipes=RECIPES)
    print_machine()
    keep_freed_memory()
    rows = []
    for name in args.recipes.split(","):
        recipe = load_recipe(name, ["model.weights=none", "training.precision=bf16"])
        dataset = load_dataset(recipe.data.model_copy(update={"source": args.data}))
        model = make_trainer(recipe, dataset).model
        layers = sum(isinstance(each, torch.nn.Conv2d) and each.groups > 1 for each in model.modules())
        fast, usual = in_turn([steps(recipe, dataset, None), steps(recipe, dataset, nullcontext())], args.rounds)
        taken = [f"{1000 * statistics.median(each):.0f} ms" for each in (usual, fast)]
        rows.append((name, str(recipe.training.batch_size), str(layers), *taken, ratio(fast, usual)))
        print_table(HEADER, rows[-1:])
    print_table(HEADER, rows)


HEADER = ("recipe", "batch", "depthwise layers", "torch's own", "ours", "times as fast (range)")


def steps(recipe: Recipe, dataset: Dataset, convolutions: AbstractContextManager[Any] | None) -> Callable[[], float]:
    """A function that does one bare step and returns its seconds, in a context; None: that of the trainer."""
    return steppers(recipe, dataset, 1, convolutions=convolutions)[1]


if __name__ == "__main__":
    main()
