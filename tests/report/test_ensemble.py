"""The section on the members of an ensemble."""

from __future__ import annotations

from petriscope.core.results import EnsembleSummary
from petriscope.report.ensemble import ensemble_view

GAIN = {"best_member": "runs/a", "gain": 0.0125, "gain_ci95": [-0.005, 0.03], "p": 0.2}
OLD_MEMBERS = [
    {"run": "runs/a", "val_accuracy": 0.75, "weight": 0.5, "taken": True},
    {"run": "runs/b b", "val_accuracy": 0.5, "weight": None, "taken": False},
]
SPECIALIST = {
    "class": "rock",
    "rules_tried": 9,
    "val_miou": {"before": 0.5, "after": 0.75},
    "val_class_iou": {"before": 0.25, "alone": 0.5, "after": 0.625},
}


def test_members_of_schema_version_1():
    view = ensemble_view(
        EnsembleSummary.model_validate({"method": "greedy-soup", "members": OLD_MEMBERS, **GAIN}), "accuracy", "a test"
    )
    assert view.rows == [("runs/a", "75.00 %", "0.500"), ("runs/b b", "50.00 %", "left out")]
    assert view.columns == ("val accuracy", "weight") and view.rule == ""
    assert "+1.25 points" in view.gain and "-0.50 to +3.00; a test, p = 0.2: no significant difference" in view.gain
    assert view.runs == "runs/a 'runs/b b'"


def test_the_rule_of_a_specialist():
    tree = {"method": "specialist", "members": [{**row, "taken": True} for row in OLD_MEMBERS], **GAIN}
    for rule, words in (
        ({"threshold": 0.5, "main_share": 0.25}, "0.25 × the main model's probability plus 0.75 × the specialist's"),
        ({"threshold": 0.5, "main_share": 0.0}, "the probability given by the specialist is above 0.5"),
        ("never", "None of the 9 rules tried raised the mean IoU"),
    ):
        found = EnsembleSummary.model_validate({**tree, "specialist": {**SPECIALIST, "rule": rule}})
        view = ensemble_view(found, "mean IoU", "a test")
        assert words in view.rule and "25.00 % with the main model" in view.rule
        assert [part for _, _, part in view.rows] == ["all classes", "rock only"]
        assert view.runs == "runs/a"  # the specialist has other classes
