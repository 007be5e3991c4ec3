"""What an ensemble is made of, and what joining its members gained."""

from __future__ import annotations

import shlex
from typing import Any

from petriscope.report import wording


def ensemble_view(ensemble: dict[str, Any] | None) -> dict[str, Any] | None:
    """The members of an ensemble, and what joining them gained on val."""
    if ensemble is None:
        return None
    members = ensemble["members"]
    key, metric, test, of = "val_accuracy", "val accuracy", "McNemar's test", ""
    if "val_miou" in members[0]:
        key, metric, test, of = "val_miou", "val mean IoU", "paired test over scenes", " of mean IoU"
    special = ensemble.get("specialist")
    best = "the main model alone" if special else "its best member"
    low, high = (100 * bound for bound in ensemble["gain_ci95"])
    p = ensemble["p"]
    shown = "a difference" if p < 0.05 else "no difference shown"
    chose = "by what rule" if special else "among the members"
    gain = (
        f"On val the ensemble is {100 * ensemble['gain']:+.2f} points{of} from {best}, {ensemble['best_member']} "
        f"(95 % interval {low:+.2f} to {high:+.2f}; {test}, p = {p:.2g}: {shown}). Val chose {chose} "
        "and may flatter the ensemble; the comparison that counts is on test:"
    )
    rivals = members[:1] if special else members  # a specialist has other classes
    runs = " ".join(shlex.quote(row["run"]) for row in rivals)
    parts = ["all classes", f"{special['class']} alone"] if special else [f"{row['weight']:.3f}" for row in members]
    rows = [
        (row["run"], wording.percent(row[key]), part if row["taken"] else "left out")
        for row, part in zip(members, parts, strict=True)
    ]
    columns = (metric, "knows" if special else "weight")
    return {"rows": rows, "columns": columns, "gain": gain, "runs": runs, "rule": _rule(special)}


def _rule(special: dict[str, Any] | None) -> str:
    """By what rule a specialist was joined, and what that changed on val."""
    if special is None:
        return ""
    name, rule, tried = special["class"], special["rule"], special["rules_tried"]
    miou, iou = special["val_miou"], {key: wording.percent(value) for key, value in special["val_class_iou"].items()}
    alone = f"IoU of {name} is {iou['before']} by the main model, {iou['alone']} by the specialist alone"
    if rule == "never":
        return f"None of {tried} rules raised the mean IoU of val, so the specialist has no say. {alone}."
    share = rule["main_share"]
    score = "the specialist's probability"
    if share:
        score = f"{share:g} of the main model's probability and {1 - share:g} of the specialist's together"
    return (
        f"A pixel is {name} where {score} is above {rule['threshold']:g}; elsewhere it is what the main model finds "
        f"likeliest of the other classes. Val chose this of {tried} rules: its mean IoU goes from "
        f"{wording.percent(miou['before'])} to {wording.percent(miou['after'])}. {alone}, {iou['after']} joined."
    )
