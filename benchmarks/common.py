"""What the benchmarks share: data, a trainer, interleaved timing, tables."""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from petriscope.augment.pipeline import Normalize
from petriscope.core.recipe import DataSection, Recipe
from petriscope.data import Dataset, ImageSet, load_dataset
from petriscope.data.batches import Batches
from petriscope.data.normalization import mean_and_std
from petriscope.inference.predictor import Predictor, load_model
from petriscope.metrics.passes import Share
from petriscope.models import build_model
from petriscope.report import wording
from petriscope.run.folder import hardware, open_run
from petriscope.training.loop import Trainer
from petriscope.trust.robustness import stratified


def arguments(description: str | None, **defaults: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", default="synthetic-smear:10000", help="any source that petriscope reads")
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    return parser.parse_args()


def corruption_parser(description: str | None) -> argparse.ArgumentParser:
    """For a run and the images to corrupt."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("run", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--images", type=int, help="how many, in the proportions of the classes; default: all")
    parser.add_argument("--tta", default="none")
    return parser


def corruption_arguments(parser: argparse.ArgumentParser) -> tuple[Predictor, ImageSet, argparse.Namespace]:
    """The predictor of the run, the images to corrupt, and the parsed arguments."""
    args = parser.parse_args()
    print_machine()
    run = open_run(args.run)
    images = load_dataset(run.recipe.data).split(args.split)
    return load_model(run.model), images.subset(stratified(images.strata, args.images or len(images))), args


def load(source: str, size: int | None = None) -> Dataset:
    return load_dataset(DataSection(source=source, size=size))


def make_trainer(recipe: Recipe, dataset: Dataset, checkpoint: Path | None = None, device: str = "cpu") -> Trainer:
    """The trainer that `petriscope train` would make, without val."""
    torch.manual_seed(0)
    train = dataset.split("train")
    model = build_model(recipe.model, len(dataset.classes), dataset.shape).to(device)
    batches = Batches(train, torch.device(device), recipe.data.memory)
    return Trainer(model, recipe, batches, None, Normalize(*mean_and_std(train)), checkpoint, quiet=True)


def in_turn(actions: Sequence[Callable[[], float]], rounds: int) -> list[list[float]]:
    """Times of each action in seconds, taken A B C A B C ..., so that a drift of the machine affects all of them alike."""
    times: list[list[float]] = [[] for _ in actions]
    for action in actions:
        action()
    for _ in range(rounds):
        for action, kept in zip(actions, times, strict=True):
            kept.append(action())
    return times


def ratio(times: list[float], reference: list[float]) -> str:
    """The median of the pairwise ratios, with their range."""
    ratios = [b / a for a, b in zip(times, reference, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def percent(share: Share) -> str:
    """A share and its interval in percent, with one decimal."""
    return f"{wording.percent(share.value, 1)} ({wording.span(share.ci95)})"


def print_machine() -> None:
    facts = hardware()
    print(f"{facts.processor}, {facts.cores} cores, {facts.threads} threads; torch {torch.__version__}, "
          f"Python {platform.python_version()}" + (f"; {facts.gpu}" if facts.gpu else ""))  # fmt: skip


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table."""
    widths = [max(len(str(row[i])) for row in (header, *rows)) for i in range(len(header))]
    line = lambda cells: "| " + " | ".join(f"{c!s:<{w}}" for c, w in zip(cells, widths, strict=True)) + " |"  # noqa: E731
    print("\n".join([line(header), "|" + "|".join("-" * (w + 2) for w in widths) + "|", *map(line, rows)]))
