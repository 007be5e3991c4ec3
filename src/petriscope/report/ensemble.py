"""What an ensemble is made of, and what it gained over its best member."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from petriscope.core.results import EnsembleSummary, Specialist
from petriscope.report import wording

LEVEL = 0.05


@dataclass(frozen=True)
class EnsembleView:
    """The section on an ensemble.

    Args:
        columns: headings after the run's own.
        rows: run, score on val, weight or classes.
        rule: how a specialist was joined; empty without one.
        gain: the gain over the best member, in words.
        runs: the runs to compare the ensemble with, quoted for a command.
    """

    columns: tuple[str, str]
    rows: list[tuple[str, str, str]]
    rule: str
    gain: str
    runs: str


def ensemble_view(ensemble: EnsembleSummary, metric: str, test: str) -> EnsembleView:
    """The members of an ensemble, and what it gained on val.

    Args:
        metric: what the scores are, within a sentence.
        test: the paired test that was used.
    """
    members, special = ensemble.members, ensemble.specialist
    if special is None:
        parts = [wording.decimal(member.weight, 3) for member in members]
        rivals, best = members, "its best member"
    else:
        parts = ["all classes", f"{special.of_class} only"]
        rivals, best = members[:1], "the main model alone"  # a specialist has other classes
    rows = [
        (member.run, wording.percent(member.val_score), part if member.taken else "left out")
        for member, part in zip(members, parts, strict=True)
    ]
    return EnsembleView(
        columns=(f"val {metric}", "weight" if special is None else "predicts"),
        rows=rows,
        rule="" if special is None else _rule(special),
        gain=_gain(ensemble, metric, test, best),
        runs=" ".join(shlex.quote(member.run) for member in rivals),
    )


def _gain(ensemble: EnsembleSummary, metric: str, test: str, best: str) -> str:
    interval = ""
    if ensemble.gain_ci95[0] is not None and ensemble.gain_ci95[1] is not None:
        low, high = (100 * bound for bound in ensemble.gain_ci95 if bound is not None)
        interval = f"95 % interval {low:+.2f} to {high:+.2f}; "
    shown = "a significant difference" if ensemble.p < LEVEL else "no significant difference"
    chosen = "The members and their weights were" if ensemble.specialist is None else "The rule was"
    return (
        f"On val, the {metric} of the ensemble differs by {100 * ensemble.gain:+.2f} points from that of {best}, "
        f"{ensemble.best_member} ({interval}{test}, p = {ensemble.p:.2g}: {shown}). {chosen} chosen on val, so this "
        "estimate may be too optimistic. Compare on test instead:"
    )


def _rule(special: Specialist) -> str:
    """The rule by which a specialist was joined, and what it changed on val."""
    name, tried = special.of_class, special.rules_tried
    iou = {key: wording.percent(value) for key, value in special.val_class_iou.items()}
    alone = f"IoU of {name}: {iou['before']} with the main model, {iou['alone']} with the specialist alone"
    if isinstance(special.rule, str):
        return (
            f"None of the {tried} rules tried raised the mean IoU on val, so the predictions of the specialist are not "
            f"used. {alone}."
        )
    share = special.rule["main_share"]
    score = "the probability given by the specialist"
    if share:
        score = f"{share:g} × the main model's probability plus {1 - share:g} × the specialist's"
    return (
        f"A pixel is predicted as {name} if {score} is above {special.rule['threshold']:g}. Otherwise it gets the "
        f"most likely of the other classes according to the main model. The rule was chosen on val among {tried}: mean "
        f"IoU goes from {wording.percent(special.val_miou['before'])} to {wording.percent(special.val_miou['after'])}. "
        f"{alone}, {iou['after']} joined."
    )
