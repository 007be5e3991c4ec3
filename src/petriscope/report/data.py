"""What a run was trained on: images by class and split, and what an audit's decisions changed."""

from __future__ import annotations

from typing import Any

from petriscope.core.recipe import Recipe
from petriscope.data.imageset import SPLITS
from petriscope.report import wording
from petriscope.run.folder import Run

AUDITED_LISTED = 100


def composition(data: dict[str, Any]) -> dict[str, Any] | None:
    """Images by class and split, each with its share of the largest of the split for a bar."""
    splits = data.get("splits") or {}
    names = [name for name in SPLITS if name in splits]
    classes = data.get("classes") or []
    if not names or not classes:
        return None
    counts = {name: list(splits[name].get("per_class") or []) for name in names}
    rows = []
    for k, label in enumerate(classes):
        cells = []
        for name in names:
            number = counts[name][k] if k < len(counts[name]) else 0
            cells.append((number, round(100 * number / max(1, *counts[name]), 1)))
        rows.append((label, cells))
    totals = [splits[name].get("images", 0) for name in names]
    return {"splits": names, "rows": rows, "totals": totals, "unit": _unit(data)}


def audited(run: Run, recipe: Recipe, data: dict[str, Any]) -> dict[str, Any] | None:
    """What an audit's decisions left out and relabeled: a sentence, and the first rows of the list."""
    counts = data.get("audited") or {}
    if not counts:
        return None
    parts = []
    for decision, words in (("drop", "left out"), ("relabel", "relabeled")):
        splits = counts.get(decision) or {}
        if total := sum(splits.values()):
            where = ", ".join(f"{name} {splits[name]:,}" for name in SPLITS if name in splits)
            all_in = f" ({where})" if where else ""
            parts.append(f"{wording.plural(total, 'image')} {'was' if total == 1 else 'were'} {words}{all_in}")
    said = f"By the decisions of the audit {recipe.data.audit}, {' and '.join(parts)}. Each is in audited.csv."
    rows = run.audited
    columns = [name for name in ("id", "split", "label", "decision", "new_label", "reason") if name in rows]
    return {
        "said": said,
        "columns": [name.replace("_", " ") for name in columns],
        "rows": rows[columns][:AUDITED_LISTED].to_numpy().tolist(),
        "more": max(len(rows) - AUDITED_LISTED, 0),
    }


def imbalance(data: dict[str, Any]) -> str:
    counts = ((data.get("splits") or {}).get("train") or {}).get("per_class") or []
    if len(counts) < 2:
        return "There is only one class: every image is right by definition." if len(counts) == 1 else ""
    if min(counts) == 0:
        absent = [c for c, n in zip(data.get("classes") or [], counts, strict=False) if n == 0]
        return f"No training image of: {', '.join(map(str, absent))}."
    ratio = max(counts) / min(counts)
    if ratio <= 1.05:
        return ""
    return f"In train, the largest class has {ratio:.1f} times as many {_unit(data)} as the smallest."


def _unit(data: dict[str, Any]) -> str:
    """What classes are counted in."""
    return "labeled pixels" if data.get("targets") == "masks" else "images"
