"""The section on disturbed images, from what the stress test left in the run folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from petriscope.report import wording
from petriscope.report.charts import Thumbnail, thumbnail

ALARMING = 0.1  # lost on average
METRICS = {"balanced_accuracy": "balanced accuracy", "miou": "mean IoU"}
KINDS = {
    "storage": "Storage and sensor",
    "blur": "Blur",
    "light": "Light",
    "color": "Color",
    "cover": "Dirt",
    "place": "Place",
}


@dataclass(frozen=True)
class HeatCell:
    """The metric at one severity."""

    metric: str
    tip: str
    lost: float  # share of the clean metric, 0 to 1: how dark the cell is


@dataclass(frozen=True)
class HeatRow:
    """One corruption: its cells, and the image under it at the severities shown."""

    name: str
    mark: str
    starred: bool
    cells: list[HeatCell]
    mean: HeatCell
    images: list[Thumbnail]


@dataclass(frozen=True)
class StressView:
    """What the page says of the stress test on one split."""

    split: str
    metric: str
    headline: str
    alarm: str
    notes: list[str]
    severities: list[int]
    groups: list[tuple[str, list[HeatRow]]]
    plain: Thumbnail | None


def stress_view(results: dict[str, Any], gallery: dict[str, np.ndarray]) -> StressView | None:
    """The view of the split that counts most; None where there was no stress test."""
    tests = results.get("stress") or {}
    split = next((name for name in ("test", "val", "train") if tests.get(name)), None)
    if split is None:
        return None
    test, corruptions = tests[split], tests[split]["corruptions"]
    names = [str(name) for name in gallery.get("disturbed_names", ())]
    strips = dict(zip(names, gallery.get("disturbed", ()), strict=False))
    groups = []
    for kind in dict.fromkeys(row["kind"] for row in corruptions.values()):
        rows = [_row(name, row, test, strips.get(name)) for name, row in corruptions.items() if row["kind"] == kind]
        groups.append((KINDS.get(kind, kind), rows))
    first = next(iter(strips.values()), None)
    return StressView(
        split=split,
        metric=METRICS[metric_of(test)],
        headline=headline(test),
        alarm=_alarm(test),
        notes=_notes(split, test),
        severities=list(test["severities"]),
        groups=groups,
        plain=None if first is None else thumbnail(first[0]),
    )


def metric_of(test: dict[str, Any]) -> str:
    """What a stress test looked at, as its metrics call it."""
    return str(test.get("metric", "balanced_accuracy"))  # older runs do not say


def headline(test: dict[str, Any]) -> str:
    """``Clean 98.5 %, disturbed mean 57.9 %, worst 19.8 % (brightness down)``."""
    worst = test["worst"]
    return (
        f"clean {wording.percent(test['clean'], 1)}, disturbed mean {wording.percent(test['mean'], 1)}, "
        f"worst {wording.percent(worst[metric_of(test)], 1)} ({_words(worst['name'])})"
    )


def _alarm(test: dict[str, Any]) -> str:
    if test["drop"] < ALARMING:
        return ""
    metric = metric_of(test)
    other = "camera or light" if metric == "miou" else "microscope, lamp or stain"
    return (
        f"On images that are blurred, discolored or partly covered, this model loses {100 * test['drop']:.1f} points of "
        f"{METRICS[metric]} on average. Another {other} may do the same. What helps: corruption-mix among "
        "the recipe's augmentations, as in blood96/robust."
    )


def _notes(split: str, test: dict[str, Any]) -> list[str]:
    used = wording.plural(test["n"], f"{split} image")
    chosen = "" if test["n"] == test["of"] else f", drawn from {test['of']:,} in the classes' proportions"
    tta = "without test-time augmentation" if test["tta"] == "none" else f"with test-time augmentation {test['tta']}"
    named = sum(row["medmnist_c"] for row in test["corruptions"].values())
    drop = f"{100 * test['drop']:.1f} points ({wording.span(test['drop_ci95'])})"
    notes = [
        f"Cells are {METRICS[metric_of(test)]} in % of {used}{chosen}, {tta}; the redder, the more is lost of the clean "
        f"{wording.percent_with_interval(test['clean'], test['clean_ci95'])}.",
        f"The disturbed mean, {wording.percent_with_interval(test['mean'], test['mean_ci95'])}, is over the five severities of "
        f"the {named} corruptions marked •, which MedMNIST-C names for blood cells; the levels are Petriscope's own. It lies "
        f"{drop} below clean: {wording.percent(test['relative_drop'], 1)} of it is lost.",
    ]
    if test.get("scenes") is not None:
        scenes = wording.plural(test["scenes"], "scene")
        notes.append(
            "Masks move where their images are moved; what comes in from outside is not judged. "
            f"Intervals are over {scenes}."
        )
    seen, unseen = test.get("seen"), test.get("unseen")
    if seen is not None and unseen is not None:
        notes.append(
            f"Over corruptions trained against, the mean is {wording.percent_with_interval(seen, test['seen_ci95'])}; "
            f"over those the training never showed, {wording.percent_with_interval(unseen, test['unseen_ci95'])}. "
            "The second is the better guess for a disturbance nobody thought of."
        )
    elif seen is None:
        notes.append("The recipe trains against none of them.")
    if promises := test.get("promises"):
        notes.append(_promises(promises))
    return notes


def _promises(promises: dict[str, Any]) -> str:
    """What val's promises come to when images are not like val's."""
    clean, disturbed = promises["clean"], promises["disturbed"]

    def share(found: dict[str, Any], name: str) -> str:
        return wording.percent_with_interval(found[name], found[f"{name}_ci95"])

    return (
        f"Asked for at most {100 * promises['max_error']:g} % errors, the model answers "
        f"{wording.percent(clean['answered'], 1)} of these images undisturbed, {share(clean, 'wrong')} of them wrongly, and "
        f"{wording.percent(disturbed['answered'], 1)} under the corruptions marked •, {share(disturbed, 'wrong')} of them "
        f"wrongly. Sets that promise the true class {100 * promises['level']:g} % of the time hold it {share(clean, 'held')} "
        f"and {share(disturbed, 'held')} of the time. Val's promises are about images like val's."
    )


def _row(name: str, row: dict[str, Any], test: dict[str, Any], strip: np.ndarray | None) -> HeatRow:
    metric, clean = metric_of(test), test["clean"]
    cells = [
        _cell(value, row[f"{metric}_ci95"][k], clean, f"{row['unit']} {row['levels'][k]:g}")
        for k, value in enumerate(row[metric])
    ]
    mark = "trained against" if row["seen"] else "held out" if row["held_out"] else "new to it"
    images = [] if strip is None else [thumbnail(pixels) for pixels in strip[1:]]
    return HeatRow(_words(name), mark, row["medmnist_c"], cells, _cell(row["mean"], row["mean_ci95"], clean), images)


def _cell(value: float | None, ci95: list[float | None], clean: float, level: str = "mean") -> HeatCell:
    tip = f"{level}: {wording.percent_with_interval(value, ci95)}"
    if value is None:
        return HeatCell(wording.NONE, tip, 0.0)
    lost = min(max(1 - value / clean, 0.0), 1.0) if clean > 0 else 0.0
    return HeatCell(f"{100 * value:.1f}", tip, round(lost, 3))


def _words(name: str) -> str:
    return {"jpeg": "JPEG"}.get(name, name.replace("-", " "))
