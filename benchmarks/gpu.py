"""What a training step costs on a GPU: the whole step against the bare one, and what it waits for and uploads.

Whole and bare step as in `step.py`, on the GPU. A wait is a call that stops the CPU until the GPU has caught up (PyTorch's
synchronization check counts them); an upload is a copy from the host to the GPU, counted by the profiler. The index of the batch
is one upload that every step needs.

    python benchmarks/gpu.py --data SOURCE --masks SOURCE
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable

import torch

from common import arguments, in_turn, print_machine, print_table, ratio
from petriscope.core.device import choose_format
from step import cases, steppers


def main() -> None:
    args = arguments(__doc__, steps=50, rounds=5, masks="synthetic-terrain:600", only="", device="cuda")
    print_machine()
    rows = []
    for name, (recipe, dataset) in cases(args).items():
        whole, bare = steppers(recipe, dataset, args.steps, args.device)
        ours, reference = in_turn([whole, bare], args.rounds)
        rows.append(
            (
                name,
                choose_format(recipe.training.precision, torch.device(args.device)),
                str(recipe.training.batch_size),
                f"{1000 * statistics.median(reference) / args.steps:.2f} ms",
                f"{1000 * statistics.median(ours) / args.steps:.2f} ms",
                ratio(ours, reference),
                f"{waits(whole) / args.steps:.1f}",
                f"{uploads(whole) / args.steps:.1f}",
            )
        )
    heads = ("model", "format", "batch", "bare step", "whole step", "whole / bare image rate (range)")
    print_table((*heads, "waits per step", "uploads per step"), rows)


def waits(action: Callable[[], float]) -> int:
    """How often the CPU waits for the GPU."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            action()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(each.message) for each in caught)


def uploads(action: Callable[[], float]) -> int:
    """How many copies go from the host to the GPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        action()
    return sum(event.count for event in profile.key_averages() if "Memcpy HtoD" in event.key)


if __name__ == "__main__":
    main()
