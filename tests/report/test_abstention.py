"""The section on selective prediction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from petriscope.core.results import Evaluation
from petriscope.report.abstention import AbstentionView, abstention_views
from petriscope.report.wording import NONE

ERRORS = {"ece_equal_mass": 0.1, "ece": 0.1, "nll": 0.5, "brier": 0.25}
ROW = {
    "max_error": 0.01,
    "guaranteed": True,
    "delta": 0.05,
    "threshold": 0.75,
    "coverage": 0.5,
    "answered": 20,
    "wrong": 1,
    "error": 0.05,
    "error_ci95": [0.01, 0.2],
}


def view_of(selective: list[dict[str, Any]] | None, predictions: pd.DataFrame | None = None) -> AbstentionView:
    calibration = {"temperature": 2.0, "before": ERRORS, "after": ERRORS}
    tree = {"split": "test", "n": 40, "calibration": calibration, "selective": selective, "aurc": 0.1}
    table = pd.DataFrame({"split": []}) if predictions is None else predictions
    (view,) = abstention_views({"test": Evaluation.model_validate({**tree, "excess_aurc": 0.05})}, {"test": table})
    return view


def test_nothing_is_said_about_a_model_that_was_not_calibrated():
    assert abstention_views({"test": Evaluation(split="test", n=40)}, {}) == []


def test_the_headline_is_about_one_percent_where_that_was_asked_for():
    view = view_of([{**ROW, "max_error": 0.005}, ROW])
    assert "at most 1 % errors requested, the model answers 50.0 % of the test images" in view.headline
    assert view.selective[1] == ["1 %", "75.00 %", "50.00 %", "1", "5.00 % (1.0 to 20.0)"]


def test_what_cannot_be_guaranteed_or_answered():
    unsupported = {**ROW, "guaranteed": False, "threshold": None, "answered": 0, "error": None, "error_ci95": None}
    view = view_of([unsupported])
    assert "No confidence threshold guarantees at most 1 % errors" in view.headline
    assert view.selective == [["1 %", "cannot be guaranteed", NONE, NONE, NONE]]
    view = view_of([{**unsupported, "guaranteed": True, "threshold": 0.9, "coverage": 0.0, "wrong": 0}])
    assert "abstains on all test images" in view.headline and view.selective[0][-1] == NONE
    assert "no error rate can be guaranteed" in view_of(None).headline


def test_charts_need_predictions():
    assert view_of([ROW]).curve is None
    p = np.random.default_rng(0).dirichlet((1, 1), 40).astype(np.float32)
    names = np.array(["a", "b"])
    table = pd.DataFrame(
        {"split": "test", "target": "a", "predicted": names[p.argmax(1)], "p_a": p[:, 0], "p_b": p[:, 1]}
    )
    view = view_of([ROW], table)
    assert view.curve is not None and view.curve.count("<circle") == 1
    assert view.before is not None and view.before != view.after
