"""What a run was trained on: images by class and split, and what the decisions of an audit changed."""

from __future__ import annotations

from dataclasses import dataclass

from petriscope.core.names import SPLITS
from petriscope.core.recipe import Recipe
from petriscope.core.results import DataInfo
from petriscope.report import wording
from petriscope.run.folder import Run
from petriscope.tasks import Task

AUDITED_LISTED = 100
AUDITED_COLUMNS = ("id", "split", "label", "decision", "new_label", "reason")


@dataclass(frozen=True)
class Composition:
    """The classes of each split.

    Args:
        splits: their names.
        rows: per class its name, and per split the amount and its share of the largest class in percent, for a bar.
        totals: images per split.
        unit: what classes are counted in.
    """

    splits: list[str]
    rows: list[tuple[str, list[tuple[int, float]]]]
    totals: list[int]
    unit: str

    @property
    def total_of(self) -> str:
        """What the last row of the table is called."""
        return "all" if self.unit == "images" else "images"


@dataclass(frozen=True)
class Audited:
    """What the decisions of an audit changed.

    Args:
        summary: a sentence.
        columns, rows: the first of the images that were left out or relabeled; ``more``: how many are not listed.
    """

    summary: str
    columns: list[str]
    rows: list[list[str]]
    more: int


def composition(data: DataInfo, task: Task) -> Composition | None:
    """The classes of each split; None where the run folder does not say."""
    names = [name for name in SPLITS if name in data.splits]
    if not names or not data.classes:
        return None
    rows = []
    for k, label in enumerate(data.classes):
        cells = []
        for name in names:
            counts = data.splits[name].per_class
            amount = counts[k] if k < len(counts) else 0
            cells.append((amount, round(100 * amount / max(1, *counts), 1)))
        rows.append((label, cells))
    return Composition(names, rows, [data.splits[name].images for name in names], task.counted)


def audited(run: Run, recipe: Recipe, data: DataInfo) -> Audited | None:
    """What the decisions of an audit left out and relabeled; None if there was no audit."""
    if not data.audited:
        return None
    parts = []
    for decision, words in (("drop", "left out"), ("relabel", "relabeled")):
        splits = data.audited.get(decision, {})
        if total := sum(splits.values()):
            where = ", ".join(f"{name} {splits[name]:,}" for name in SPLITS if name in splits)
            in_splits = f" ({where})" if where else ""
            verb = "was" if total == 1 else "were"
            parts.append(f"{wording.plural(total, 'image')} {verb} {words}{in_splits}")
    summary = (
        f"By the decisions of the audit {recipe.data.audit}, {' and '.join(parts)}. They are listed in audited.csv."
    )
    table = run.audited
    columns = [name for name in AUDITED_COLUMNS if name in table]
    return Audited(
        summary,
        [name.replace("_", " ") for name in columns],
        table[columns][:AUDITED_LISTED].to_numpy().tolist(),
        max(len(table) - AUDITED_LISTED, 0),
    )


def imbalance(data: DataInfo, task: Task) -> str:
    """A sentence on how unequal the classes of the training images are; empty where they are about equal."""
    train = data.splits.get("train")
    counts = [] if train is None else train.per_class
    if not counts:
        return ""
    if len(counts) == 1:
        return "There is only one class, so every prediction is correct by definition."
    if min(counts) == 0:
        absent = [name for name, count in zip(data.classes, counts, strict=False) if count == 0]
        return f"No training image of: {', '.join(absent)}."
    ratio = max(counts) / min(counts)
    if ratio <= 1.05:
        return ""
    return f"In train, the largest class has {ratio:.1f} times as many {task.counted} as the smallest."
